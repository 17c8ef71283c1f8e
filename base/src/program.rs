//! Wrapper for `main`: logging to standard error, a quiet exit on a closed pipe, error reporting
//! and exit codes.

use std::fmt::Display;
use std::io::{IsTerminal, Write as _};
use std::path::Path;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::error::{Error, Result};
use crate::text::lines;

/// Environment variable with the log filter, such as `info`, `debug` or `warn`.
pub const LOG_VARIABLE: &str = "DW_LOG";

/// Runs the body of a command-line tool. Sets up logging to standard error and the default SIGPIPE
/// action (`tool | head` ends quietly). An error is printed and converted to its exit code.
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

/// Writes a message to standard error with a single write, because launchers prefix each write with
/// the rank. Control characters are escaped.
pub fn print_message(text: &str) {
    // A failed write to standard error cannot be reported.
    let _ = std::io::stderr().write_all(format!("{}\n", lines(text)).as_bytes());
}

/// Writes a result and a line break to standard output.
///
/// # Errors
/// A full disk, or a closed pipe if [`end_on_closed_pipe`] was not called.
pub fn print_result(text: impl Display) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{text}").and_then(|()| out.flush());
    written.map_err(Error::io("cannot write", Path::new("standard output")))
}

/// Restores the default action of SIGPIPE, which Rust programs ignore: a write to a closed pipe
/// then terminates the process. Not for programs that supervise other processes.
///
/// Must be called before any thread starts.
pub fn end_on_closed_pipe() {
    // SAFETY: sets the default action of a signal; no handler is involved.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

/// Whether log lines start with a timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// Timestamps, for long-running programs.
    On,
    /// No timestamps, for short-running tools.
    Off,
}

/// The log filter for a value of [`LOG_VARIABLE`], or for `level` if the value is absent or empty.
/// An invalid value is reported and replaced by `level`: a misspelt level would otherwise be
/// interpreted as the name of a module.
fn filter(value: Option<&str>, level: &str) -> EnvFilter {
    let Some(value) = value.map(str::trim).filter(|v| !v.is_empty()) else { return level.into() };
    let is_known = |part: &str| part.contains('=') || part.trim().parse::<LevelFilter>().is_ok();
    match EnvFilter::try_new(value) {
        Ok(filter) if value.split(',').all(is_known) => filter,
        _ => {
            print_message(&format!(
                "warning: {LOG_VARIABLE}={value}: expected error, warn, info, debug or trace; \
                 using {level}"
            ));
            level.into()
        }
    }
}

/// Initialises logging to standard error. `level` is the default filter if [`LOG_VARIABLE`] is not
/// set. Does nothing if logging is already initialised.
pub fn log_to_stderr(level: &str, clock: Clock) {
    let filter = filter(std::env::var(LOG_VARIABLE).ok().as_deref(), level);
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // It would report a failed write to standard error there, and panic: a run does not end
        // because its log cannot be written.
        .log_internal_errors(false)
        .with_target(false)
        .compact();
    // Fails only if a subscriber is already set, for instance in tests that call `run` twice.
    let _ = match clock {
        Clock::On => log.try_init(),
        Clock::Off => log.without_time().try_init(),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_level_does_not_switch_the_log_off() {
        let text = |value| filter(value, "info").to_string();
        assert_eq!(text(Some("debug")), "debug");
        assert_eq!(text(Some("warn,dw=debug")), "dw=debug,warn");
        for wrong in [None, Some(""), Some(" "), Some("inf"), Some("warn,verbose"), Some("a=b=c")] {
            assert_eq!(text(wrong), "info", "{wrong:?}");
        }
    }
}
