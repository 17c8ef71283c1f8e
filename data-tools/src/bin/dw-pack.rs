//! `dw-pack`: packs a detection data set into shards, and inspects and exports packed data.

use std::process::ExitCode;

use clap::Parser;
use dw_shards::cli;

fn main() -> ExitCode {
    dw_base::program::run(|| cli::run(cli::Cli::parse()))
}
