//! `dw-weights`: lists and converts weight files, and downloads pretrained weights.

use std::process::ExitCode;

use clap::Parser;
use dw_weights::cli::{Cli, run};

fn main() -> ExitCode {
    dw_base::program::run(|| run(Cli::parse()))
}
