//! Compiles `torch_ext.cpp` against libtorch's headers and sets the binaries' rpath, so that users set no
//! LD_LIBRARY_PATH.

use std::path::PathBuf;

include!("tools/git_revision.rs");

fn build() {
    println!("cargo:rerun-if-changed=src/torch_ext.cpp");
    println!("cargo:rerun-if-changed=src/torch_ext.rs");
    let lib = PathBuf::from(std::env::var("DEP_TCH_LIBTORCH_LIB").unwrap_or_default());
    let include = lib.join("../include");
    assert!(
        include.join("ATen/core/Tensor.h").is_file(),
        "libtorch's headers are missing below {}: run `make setup`, or point LIBTORCH at the `torch` folder of torch 2.11.0",
        include.display()
    );
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file("src/torch_ext.cpp")
        .compile("dw_torch_ext");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
}

fn main() {
    git_revision();
    build();
}
