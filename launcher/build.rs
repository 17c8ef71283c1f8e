//! Compiles the one C function that carries `MPI_IN_PLACE` (feature `mpi` only), and tells the git revision for `--version`.

include!("../tools/git_revision.rs");

fn main() {
    git_revision();
    println!("cargo:rerun-if-changed=src/in_place.c");
    if std::env::var_os("CARGO_FEATURE_MPI").is_some() {
        println!("cargo:rerun-if-env-changed=MPICC");
        let mpicc = std::env::var("MPICC").unwrap_or_else(|_| "mpicc".into());
        cc::Build::new().compiler(mpicc).file("src/in_place.c").compile("dw_mpi_in_place");
    }
}
