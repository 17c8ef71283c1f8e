//! Processes of one training job: who they are, how they add numbers, how they end.
//!
//! * [`topology`]: rank and world size as the launcher (mpirun, srun) tells them, before any library is opened
//! * [`collectives`]: the trait that training sees, and the implementation for one process
//! * [`mpi`]: host memory over MPI (feature `mpi`)
//! * [`nccl`]: device memory over NCCL, opened at run time
//! * [`abort`]: ending every rank of a job, from an error or a panic

pub mod abort;
pub mod collectives;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod nccl;
pub mod topology;

pub use collectives::{Collectives, Error, Op, Result, Solo};
pub use topology::Topology;

/// Joins the job: MPI where a launcher started several processes, else one process.
///
/// # Errors
/// Several processes without MPI in this build, or an MPI whose world is not the launcher's
/// (a binary built for one MPI and started by another silently becomes N single jobs).
pub fn join() -> Result<Box<dyn Collectives>> {
    let topology = Topology::from_env();
    if topology.world == 1 {
        return Ok(Box::new(Solo));
    }
    #[cfg(feature = "mpi")]
    {
        let world = mpi::Mpi::join()?;
        if world.size() != topology.world {
            return Err(Error(format!(
                "the launcher started {} processes, but MPI sees {}\nhint: start with the mpirun of the MPI this binary was built with (see --version)",
                topology.world,
                world.size()
            )));
        }
        Ok(Box::new(world))
    }
    #[cfg(not(feature = "mpi"))]
    Err(Error(format!(
        "the launcher started {} processes, but this binary was built without MPI\nhint: build with the default features, or start one process",
        topology.world
    )))
}
