//! Compiles the C++ files of `src/torch` against libtorch's headers and sets the binaries' rpath, so that users set
//! no LD_LIBRARY_PATH.

use std::path::PathBuf;

include!("tools/git_revision.rs");

const SOURCES: [&str; 7] = ["context", "deform", "gradient", "memory", "profile", "sgd", "stream"];

fn build() {
    println!("cargo:rerun-if-changed=src/torch");
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
        .files(SOURCES.map(|name| format!("src/torch/{name}.cpp")))
        .compile("dw_torch");
    // As a search path that LD_LIBRARY_PATH comes before.
    println!("cargo:rustc-link-arg=-Wl,--enable-new-dtags,-rpath,{}", lib.display());
    // For tests that compile against libtorch's headers.
    println!("cargo:rustc-env=DW_LIBTORCH_LIB={}", lib.display());
}

fn main() {
    git_revision();
    build();
}
