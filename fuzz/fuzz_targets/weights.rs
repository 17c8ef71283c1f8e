//! Opens and reads arbitrary bytes as a weight file: it must neither crash nor allocate without
//! bounds.
#![no_main]

use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

/// File in memory that is rewritten for every input, because the reader takes a path.
static FILE: LazyLock<(std::path::PathBuf, std::fs::File)> = LazyLock::new(|| {
    let path = std::path::PathBuf::from(format!("/dev/shm/dw-fuzz-{}", std::process::id()));
    let file = std::fs::File::create(&path).expect("create the input file");
    (path, file)
});

fuzz_target!(|data: &[u8]| {
    let (path, file) = &*FILE;
    file.set_len(0).and_then(|()| file.write_all_at(data, 0)).expect("write the input file");
    if let Ok(weights) = dw_weights::Weights::open(path) {
        for name in weights.tensors.keys() {
            let _ = weights.read(name);
        }
    }
});
