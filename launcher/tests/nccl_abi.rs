//! Compares the bindings in `src/rank/nccl/api.rs` with NCCL's header, if `make test` or a CUDA
//! install has fetched it.

use std::path::{Path, PathBuf};
use std::process::Command;

fn header() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache =
        cache.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache")))?.join("dw");
    let folders =
        std::fs::read_dir(cache).ok()?.flatten().map(|e| e.path().join("nvidia/nccl/include"));
    folders.into_iter().find(|d| d.join("nccl.h").is_file())
}

#[test]
fn bindings_match_nccl_h() {
    let Some(nccl) = header() else {
        eprintln!("skipped: no nccl.h in the machine's cache (tools/setup.sh tests fetches it)");
        return;
    };
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nccl_abi");
    let out = Command::new("cc")
        .args(["-std=c11", "-fsyntax-only", "-Werror=incompatible-pointer-types"])
        .args(["-I".as_ref(), nccl.as_os_str(), "-I".as_ref(), here.as_os_str()])
        .arg(here.join("abi.c"))
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}
