//! A test double of NCCL (`double.c`), for tests without a GPU.

use std::ffi::{c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;

use dw_launch::nccl::SideStream;
use libloading::os::unix::Library as Dynamic;

/// Compiles the double into `dir`, with additional options for the compiler.
pub(crate) fn compile(dir: &Path, options: &[&str]) -> PathBuf {
    let library = dir.join("libnccl.so.2");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nccl_double/double.c");
    let out = Command::new("cc")
        .args(["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-O1", "-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .args(options)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    library
}

/// The double's counters.
pub(crate) struct Counters(Dynamic);

impl Counters {
    /// Counters of the double at `path`, which is loaded if necessary.
    pub(crate) fn of(path: &Path) -> Self {
        // SAFETY: the double has no initialisers.
        Self(unsafe { Dynamic::new(path) }.unwrap())
    }

    /// Value of the counter `double_NAME`.
    pub(crate) fn get(&self, name: &str) -> c_int {
        let symbol = format!("double_{name}\0");
        // SAFETY: the signature of all functions that return counters.
        let read: unsafe extern "C" fn() -> c_int = *unsafe { self.0.get(symbol) }.unwrap();
        // SAFETY: no preconditions.
        unsafe { read() }
    }
}

/// A stream without a device.
pub(crate) struct NoStream;

impl SideStream for NoStream {
    fn handle(&self) -> *mut c_void {
        std::ptr::null_mut()
    }

    fn after_compute(&self) {}

    fn before_compute(&self) {}
}
