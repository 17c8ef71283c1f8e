//! `dw-launch`: starts a job on this machine or a cluster and stays with it.

use std::process::ExitCode;

use clap::Parser;
use dw_launch::cli::Cli;

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false).compact().init();
    Cli::parse().run()
}
