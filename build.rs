//! Build script: compiles the C++ files of `src/torch` against the libtorch headers, and sets the
//! rpath of the binaries, so that users need no LD_LIBRARY_PATH.

use std::path::PathBuf;

include!("tools/git_revision.rs");

const SOURCES: [&str; 16] = [
    "context",
    "conv",
    "deform",
    "dw_loss",
    "fold",
    "gradient",
    "group_norm",
    "group_norm_cpu",
    "kernels",
    "memory",
    "profile",
    "readback",
    "relu_cpu",
    "sgd",
    "stream",
    "weights_cpu",
];

fn build() {
    println!("cargo:rerun-if-changed=src/torch");
    let lib = PathBuf::from(std::env::var("DEP_TCH_LIBTORCH_LIB").unwrap_or_default());
    let include = lib.join("../include");
    assert!(
        include.join("ATen/core/Tensor.h").is_file(),
        "no libtorch headers in {}\nhint: run `make setup`, or set LIBTORCH to the `torch` folder \
         of torch 2.11.0",
        include.display()
    );
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        // Loops run on libtorch's threads, and round in the same way on every CPU.
        .flag("-fopenmp")
        .flag("-ffp-contract=off")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .files(SOURCES.map(|name| format!("src/torch/{name}.cpp")))
        .compile("dw_torch");
    // New dtags: LD_LIBRARY_PATH takes precedence.
    println!("cargo:rustc-link-arg=-Wl,--enable-new-dtags,-rpath,{}", lib.display());
    // For tests that compile against the libtorch headers.
    println!("cargo:rustc-env=DW_LIBTORCH_LIB={}", lib.display());
}

fn main() {
    git_revision();
    build();
}
