//! `dw-pack`: packs a COCO folder into shards and inspects packed data.

use std::process::ExitCode;

use clap::Parser;
use dw_shards::cli;

fn main() -> ExitCode {
    dw_base::program::run(|| cli::run(cli::Cli::parse()))
}
