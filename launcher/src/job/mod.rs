//! What `dw-launch` runs outside the ranks.
//!
//! * [`command`]: the mpirun or srun command line
//! * [`batch`]: SLURM batch scripts
//! * [`monitor`]: server for the status reports of the ranks
//! * `output`: forwards the ranks' output and parses the launcher's messages in it
//! * `verdict`: exit code and reason of a job that has ended
//! * `family`: the processes that the launcher has started on this machine
//! * `shutdown`: the steps from a checkpoint request to SIGKILL
//! * [`supervisor`]: runs a job and restarts it when a rank was lost

pub mod batch;
pub mod command;
mod family;
pub mod monitor;
mod output;
mod shutdown;
pub mod supervisor;
mod verdict;
