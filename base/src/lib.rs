//! Code shared by all `dw` crates. It depends on none of them.
//!
//! * [`error`]: the error type and the exit code of each kind of error
//! * [`exit`]: exit codes
//! * [`failure`]: classifies library error messages that report a machine failure
//! * [`program`]: wrapper for `main`: logging, closed pipes, error reporting
//! * [`file`]: atomic writes of files and folders
//! * [`text`]: escapes control characters in untrusted text
//! * [`names`]: validates untrusted names before they are used in paths
//! * [`threads`]: numbers of threads, checked against the machine
//! * [`host`]: the machine that the process runs on
//! * [`process`]: its processes

pub mod error;
pub mod exit;
pub mod failure;
pub mod file;
pub mod host;
pub mod names;
pub mod process;
pub mod program;
pub mod text;
pub mod threads;

pub use error::{Error, Result};
