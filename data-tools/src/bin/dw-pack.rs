//! `dw-pack`: a COCO folder to shards, and tools around them.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // `dw-pack info | head` ends quietly, as other tools do; Rust would panic on the closed pipe.
    // SAFETY: sets a signal's default action before any thread starts.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
    match dw_shards::cli::run(dw_shards::cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            dw_base::text::print_error(&e);
            ExitCode::from(e.exit_code())
        }
    }
}
