//! Processes of one training job: who they are, how they add numbers, how they end.
//!
//! * [`topology`]: rank and world size as the launcher (mpirun, srun) tells them, before any library is opened
//! * [`world`]: the job as its ranks see it: numbered, logged, watched collectives
//! * [`collectives`]: the trait below it, and the implementation for one process
//! * [`mpi`]: host memory over MPI (feature `mpi`); [`nccl`]: device memory over NCCL, opened at run time
//! * [`calls`], [`watchdog`], [`abort`], [`signals`], [`lost_file`]: the last calls, deadlines, the end of a job
//! * [`drill`]: faults on demand
//! * [`cli`], [`command`], [`supervisor`], `verdict`, `output`, [`board`], [`batch`]: what `dw-launch` does beside the job
//! * [`plan`]: what more GPUs would give, from numbers that [`measure`] has measured

pub mod abort;
pub mod batch;
pub mod board;
pub mod calls;
pub mod cli;
pub mod collectives;
pub mod command;
pub mod drill;
pub mod lost_file;
pub mod measure;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod nccl;
mod output;
pub mod plan;
pub mod signals;
pub mod supervisor;
#[cfg(test)]
mod testing;
pub mod topology;
mod verdict;
pub mod watchdog;
pub mod world;

use std::sync::Arc;

pub use calls::Tag;
pub use collectives::{Buffer, Collectives, Error, Memory, Number, Op, Result, Solo};
pub use topology::Topology;
pub use world::World;

/// Text of `--version`.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("DW_GIT"), ")");

/// Settings of the process for the libraries that it will open; to be called first in `main`, before any thread starts.
pub fn prepare() {
    #[cfg(feature = "mpi")]
    mpi::prefer_rings();
}

/// Joins the job: MPI where a launcher started several processes, else one process.
///
/// # Errors
/// Several processes without MPI in this build, or an MPI whose world is not the launcher's
/// (a binary built for one MPI and started by another silently becomes N single jobs).
pub fn join() -> Result<Arc<dyn Collectives>> {
    let topology = Topology::from_env();
    if topology.world == 1 {
        return Ok(Arc::new(Solo));
    }
    #[cfg(feature = "mpi")]
    {
        let world = mpi::Mpi::join()?;
        if world.size() != topology.world {
            return Err(Error::Failed(format!(
                "the launcher started {} processes, but MPI sees {}\nhint: start with the mpirun of the MPI this binary was built with (see --version)",
                topology.world,
                world.size()
            )));
        }
        Ok(Arc::new(world))
    }
    #[cfg(not(feature = "mpi"))]
    Err(Error::Failed(format!(
        "the launcher started {} processes, but this binary was built without MPI\nhint: build with the default features, or start one process",
        topology.world
    )))
}

/// This machine's name.
pub fn host() -> String {
    let mut name = [0u8; 256];
    // SAFETY: the buffer is as long as said; the call ends the name with a zero where it fits.
    let code = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len()) };
    let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
    if code == 0 {
        String::from_utf8_lossy(&name[..end]).into_owned()
    } else {
        "unknown host".into()
    }
}
