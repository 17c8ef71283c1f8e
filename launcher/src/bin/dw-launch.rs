//! `dw-launch`: starts a job on this machine or a cluster and supervises it.

use std::process::ExitCode;

use clap::Parser;
use dw_base::program::{self, Clock};
use dw_launch::cli::Cli;

// Not `program::run`, which lets SIGPIPE end the process: the supervisor must outlive a reader of
// its output.
fn main() -> ExitCode {
    program::log_to_stderr("info", Clock::On);
    Cli::parse().run().unwrap_or_else(|e| program::fail(&e))
}
