//! The command line of `dw-pack`. Results go to standard output, messages to standard error.

use dw_base::Result;

use crate::threads;

mod args;
mod inspect;
mod pack;
mod progress;
mod synth;

pub use args::Cli;
use args::Command;

/// Runs the command.
///
/// # Errors
/// Those of the command, whose exit code is [`dw_base::Error::exit_code`].
pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        None => pack::pack(&cli.pack),
        Some(Command::Info { out, json }) => inspect::info(&out, json),
        Some(Command::Verify { out }) => threads::pool(0)?.install(|| inspect::verify(&out)),
        Some(Command::Synth { dir, images, val, seed, classes, side }) => {
            synth::synth(&dir, &crate::synth::Options { train: images, val, classes, seed, side })
        }
        Some(Command::Export { out, dir, format }) => {
            threads::pool(0)?.install(|| inspect::export(&out, &dir, format))
        }
        Some(Command::Bench { out, json }) => inspect::bench(&out, json),
    }
}
