//! Ranks of a training job: collectives, failure handling, launching and supervision.
//!
//! * [`rank`]: what runs inside each rank: collectives over MPI and NCCL, watchdog, abort
//! * [`job`]: what `dw-launch` runs outside the ranks: launch commands, batch scripts, supervision
//! * [`plan`]: step time on more GPUs, predicted from measured numbers
//! * [`cli`]: the command line of `dw-launch`

pub mod cli;
pub mod job;
pub mod plan;
pub mod rank;

#[cfg(test)]
mod testing;

pub use dw_base::{Error, Result};
#[cfg(feature = "mpi")]
pub use rank::mpi;
pub use rank::{
    Buffer, Collectives, Memory, Number, Op, Solo, Tag, Topology, World, abort, fault, join, nccl,
    prepare, restart, sigbus, signals,
};

/// Text of `--version`.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("DW_GIT"), ")");
