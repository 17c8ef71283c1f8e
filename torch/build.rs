//! Compiles the C++ files of this crate against libtorch's headers.

use std::path::PathBuf;

const SOURCES: [&str; 17] = [
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
    "norm",
    "profile",
    "readback",
    "relu_cpu",
    "sgd",
    "stream",
    "weights_cpu",
];

fn main() {
    // Only the C++ files, so that a change of a Rust file compiles no C++.
    for entry in std::fs::read_dir("src").into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|e| e == "cpp" || e == "h") {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
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
        // Loops run on libtorch's OpenMP threads, and round in the same way on every CPU.
        .flag("-fopenmp")
        .flag("-ffp-contract=off")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .files(SOURCES.map(|name| format!("src/{name}.cpp")))
        .compile("dw_torch");
    println!("cargo::rustc-link-arg=-Wl,--enable-new-dtags,-rpath,{}", lib.display());
    // For the build script of `dw`: DEP_DW_TORCH_LIB.
    println!("cargo::metadata=LIB={}", lib.display());
}
