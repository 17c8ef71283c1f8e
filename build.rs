//! Sets the rpath of the binaries, so that users need no LD_LIBRARY_PATH, and the git revision for
//! `--version`.

include!("tools/git_revision.rs");

fn main() {
    git_revision();
    let lib = std::env::var("DEP_DW_TORCH_LIB").unwrap_or_default();
    // New dtags: LD_LIBRARY_PATH takes precedence.
    println!("cargo:rustc-link-arg=-Wl,--enable-new-dtags,-rpath,{lib}");
    // For tests that compile against the libtorch headers.
    println!("cargo:rustc-env=DW_LIBTORCH_LIB={lib}");
}
