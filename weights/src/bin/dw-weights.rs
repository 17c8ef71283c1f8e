//! `dw-weights`: what is in a weight file, conversion to safetensors, pinned files from the network.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // `dw-weights list | head` ends quietly, as other tools do; Rust would panic on the closed pipe.
    // SAFETY: sets a signal's default action before any thread starts.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
    match dw_weights::cli::run(dw_weights::cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            dw_base::text::print_error(&e);
            ExitCode::from(e.exit_code())
        }
    }
}
