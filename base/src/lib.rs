//! What all programs of `dw` share. It depends on none of the other crates.
//!
//! * [`error`]: one error type, and which exit code each kind of error has
//! * [`exit`]: exit codes
//! * [`failure`]: failures of the machine, recognised in the error texts of libraries
//! * [`program`]: the frame of `main`: logging, closed pipes, errors
//! * [`file`]: files that are whole or not there
//! * [`text`]: text from files, made safe to print
//! * [`names`]: names from files, checked before they become a path
//! * [`host`]: the name of this machine

pub mod error;
pub mod exit;
pub mod failure;
pub mod file;
pub mod host;
pub mod names;
pub mod program;
pub mod text;

pub use error::{Error, Result};
