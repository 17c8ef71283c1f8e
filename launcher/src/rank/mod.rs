//! What runs inside each rank of a job.
//!
//! * [`topology`]: rank and world size from the launcher's environment
//! * [`abort`]: panic hook, and exits that run no destructors
//! * [`collectives`]: the trait of all backends, and the backend for one process
//! * [`calls`]: log of the rank's latest collectives
//! * [`signals`], [`sigbus`]: signal handlers
//! * [`status`]: status reports to `dw-launch`
//! * [`watchdog`]: the thread that enforces deadlines
//! * [`world`]: the communicator that the trainer uses: logged and supervised collectives
//! * [`mpi`]: backend for host memory (feature `mpi`)
//! * [`nccl`]: backend for device memory, opened at run time
//! * [`fault`]: fault injection
//! * [`restart`]: whether the job was restarted

pub mod abort;
pub mod calls;
pub mod collectives;
pub mod sigbus;
pub mod signals;
pub mod status;
pub mod topology;
pub mod watchdog;
pub mod world;

pub mod fault;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod nccl;
pub mod restart;

use std::sync::Arc;

use dw_base::{Error, Result};

pub use self::calls::Tag;
pub use self::collectives::{Buffer, Collectives, Memory, Number, Op, Solo};
pub use self::topology::Topology;
pub use self::world::World;

/// Sets environment variables for libraries that are opened later. To be called first in `main`,
/// before any thread starts.
pub fn prepare() {
    #[cfg(feature = "mpi")]
    mpi::prefer_rings();
}

/// Joins the job: over MPI if a launcher started several processes, else as a single process.
///
/// # Errors
/// Several processes in a build without MPI, or an MPI whose world size differs from the
/// launcher's: a binary that is started by the mpirun of another MPI would run as N independent
/// jobs.
pub fn join() -> Result<Arc<dyn Collectives>> {
    let world_size = Topology::from_env().world_size;
    if world_size == 1 {
        return Ok(Arc::new(Solo));
    }
    #[cfg(feature = "mpi")]
    {
        let mpi = mpi::Mpi::join()?;
        if mpi.size() == world_size {
            return Ok(Arc::new(mpi));
        }
        Err(Error::Usage(format!(
            "the launcher started {world_size} processes, but the world size of MPI is {}\nhint: \
             start with the mpirun of the MPI that this binary was built with (see --version)",
            mpi.size()
        )))
    }
    #[cfg(not(feature = "mpi"))]
    Err(Error::Usage(format!(
        "the launcher started {world_size} processes, but this binary was built without MPI\n\
         hint: build with the default features, or start one process"
    )))
}
