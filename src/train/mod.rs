//! Training: [`run`] is the loop, [`step`] is one step.
//!
//! * [`start`]: from a command line to a running loop; [`init`]: starting weights; [`resume`], [`lock`], [`work_dir`]
//! * [`flat`], [`buckets`], [`sgd`], [`schedule`]: buffers, their all-reduce, the update, the learning rate
//! * [`validation`]: evaluations of a run
//! * [`checkpoint`], [`saver`]: what is kept, and the thread that writes it
//! * [`log`]: records of steps and evaluations, and where they go

pub mod buckets;
pub mod checkpoint;
pub mod flat;
pub mod init;
pub mod lock;
pub mod log;
pub mod resume;
pub mod run;
pub mod saver;
pub mod schedule;
pub mod sgd;
pub mod start;
pub mod step;
pub mod validation;
pub mod work_dir;
