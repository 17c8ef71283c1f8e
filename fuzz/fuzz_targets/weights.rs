//! Any bytes as a weight file: opened and read whole, an error or numbers, never a crash or memory without bounds.
#![no_main]

use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

/// The reader takes a path, as users do: one file in memory, written anew for every input.
static FILE: LazyLock<(std::path::PathBuf, std::fs::File)> = LazyLock::new(|| {
    let path = std::path::PathBuf::from(format!("/dev/shm/dw-fuzz-{}", std::process::id()));
    let file = std::fs::File::create(&path).expect("memory file system");
    (path, file)
});

fuzz_target!(|data: &[u8]| {
    let (path, file) = &*FILE;
    file.set_len(0).and_then(|()| file.write_all_at(data, 0)).expect("write");
    if let Ok(weights) = dw_weights::Weights::open(path) {
        for name in weights.tensors.keys() {
            let _ = weights.read(name);
        }
    }
});
