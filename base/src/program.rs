//! What every `main` needs: logging to standard error, a closed pipe that ends the program
//! quietly, an error printed once, and its exit code.

use std::io::{IsTerminal, Write as _};
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

use crate::error::{Error, Result};
use crate::text::lines;

/// Environment variable with the level of the log, as `info`, `debug` or `warn`.
pub const LOG_VARIABLE: &str = "DW_LOG";

/// Runs a command-line tool: `tool | head` ends quietly, logs go to standard error, and an error
/// is printed and decides the exit code.
pub fn run(main: impl FnOnce() -> Result<()>) -> ExitCode {
    end_on_closed_pipe();
    log_to_stderr("info", Clock::Off);
    match main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&e),
    }
}

/// Prints an error and returns its exit code.
pub fn fail(e: &Error) -> ExitCode {
    print_message(&format!("error: {e}"));
    ExitCode::from(e.exit_code() as u8)
}

/// Writes a message to standard error in one piece, so that a launcher that prefixes each write
/// with the rank does not split it. Control characters are escaped.
pub fn print_message(text: &str) {
    // A closed standard error cannot be reported anywhere.
    let _ = std::io::stderr().write_all(format!("{}\n", lines(text)).as_bytes());
}

/// Restores the default action of SIGPIPE, which Rust ignores: writing to a closed pipe then ends
/// the process instead of failing. Not for a program that supervises others.
///
/// To be called before any thread starts.
pub fn end_on_closed_pipe() {
    // SAFETY: sets the default action of a signal; no handler is involved.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

/// Whether lines of the log begin with the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// For programs that run for long.
    On,
    /// For tools that end within minutes.
    Off,
}

/// Starts logging to standard error. `level` applies where the user has not set [`LOG_VARIABLE`].
/// Does nothing when logging has been started before.
pub fn log_to_stderr(level: &str, clock: Clock) {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| level.into());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .compact();
    // Fails only where a subscriber exists, as in tests that call `main` twice.
    let _ = match clock {
        Clock::On => log.try_init(),
        Clock::Off => log.without_time().try_init(),
    };
}
