//! The custom CUDA kernels, compiled as C++ for tensors in host memory (`cuda_on_cpu.h`).

use std::ffi::{CStr, c_void};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::ptr::null_mut;

use dw::device::kernels::{NAMES, SOURCE};
use dw_torch::{Kernels, set_kernels};
use libloading::os::unix::Library;

/// Compiles the source of the kernels, with `from` replaced by `to`, and uses the result from now
/// on.
pub fn use_on_cpu(from: &str, to: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut text = SOURCE.to_str().unwrap().replace(from, to);
    text.insert_str(0, "#include \"cuda_on_cpu.h\"\n");
    text.push_str("#include \"cuda_on_cpu_launch.h\"\nextern \"C\" {\n");
    for name in NAMES.map(|n| n.to_str().unwrap()) {
        let _ = writeln!(text, "void *kernel_{name} = (void *)Call<&{name}>::run;");
    }
    text.push_str("}\n");
    let (file, library) = (dir.path().join("kernels.cpp"), dir.path().join("kernels.so"));
    std::fs::write(&file, text).unwrap();
    let out = Command::new("c++")
        .args(["-std=c++17", "-O1", "-shared", "-fPIC", "-w", "-I"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support"))
        .arg("-o")
        .args([&library, &file])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    // SAFETY: the library was compiled just now; its initialisers have no preconditions.
    let library = unsafe { Library::new(&library) }.unwrap();
    // SAFETY: variables and a function of the source above.
    let (functions, launch) = unsafe {
        let pointer = |name: &CStr| {
            let symbol = format!("kernel_{}\0", name.to_str().unwrap());
            **library.get::<*mut *mut c_void>(symbol.as_bytes()).unwrap()
        };
        (NAMES.map(pointer), *library.get::<*mut c_void>(b"launch_on_cpu\0").unwrap())
    };
    // SAFETY: kernels of the program's source, in its order, of a library that stays loaded; the
    // tests use them from one thread.
    unsafe { set_kernels(Some(Kernels { functions, launch, describe: null_mut(), on_cpu: true })) };
    std::mem::forget(library);
}
