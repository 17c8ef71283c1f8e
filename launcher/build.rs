//! Compiles the C function that returns `MPI_IN_PLACE` (feature `mpi`), and sets the git revision
//! for `--version`.

include!("../tools/git_revision.rs");

fn main() {
    const IN_PLACE: &str = "src/rank/mpi_in_place.c";
    git_revision();
    println!("cargo:rerun-if-changed={IN_PLACE}");
    if std::env::var_os("CARGO_FEATURE_MPI").is_some() {
        println!("cargo:rerun-if-env-changed=MPICC");
        let mpicc = std::env::var("MPICC").unwrap_or_else(|_| "mpicc".into());
        cc::Build::new().compiler(mpicc).file(IN_PLACE).compile("dw_mpi_in_place");
    }
}
