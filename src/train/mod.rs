//! Training: [`run`] is the loop, [`step`] is one step, [`queue`] holds the steps in progress,
//! [`due`] is what happens after a step.
//!
//! * [`config`]: `[train]` and `[checkpoint]`; [`plan`]: the resolved settings of a run; [`init`]:
//!   initial weights; [`lock`], [`work_dir`]: the work directory
//! * [`flat`]: flat buffers; [`buckets`]: all-reduce of gradients; [`sgd`]: the update;
//!   [`schedule`]: the learning rate; [`kernels`]: compares the loss by custom kernels at start
//! * [`validation`]: evaluations during training
//! * [`snapshot`], [`checkpoint`], [`saver`]: a copy of the state, its folder on disk, and the
//!   thread that writes it
//! * [`log`]: records of steps and evaluations, and their sinks

pub mod buckets;
pub mod checkpoint;
pub mod config;
pub mod due;
pub mod flat;
pub mod init;
pub mod input;
pub mod kernels;
pub mod lock;
pub mod log;
pub mod plan;
pub mod queue;
pub mod run;
pub mod saver;
pub mod schedule;
pub mod sgd;
pub mod snapshot;
mod statistics;
pub mod step;
pub mod validation;
pub mod work_dir;

pub use config::{CheckpointConfig, TrainConfig};
pub use plan::{Plan, RunConfig};
