//! Signals that request a checkpoint: SIGUSR1, SIGTERM, SIGHUP and the first SIGINT set a flag that
//! the ranks combine at their next step. SIGTERM also starts a deadline, which the watchdog
//! enforces: a rank whose peers are gone would otherwise wait for them in the collective before the
//! checkpoint.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Time for a checkpoint after SIGTERM, below the 30 s of SLURM's default KillWait.
pub const TERM_GRACE: Duration = Duration::from_secs(25);

struct Flags {
    stop: Arc<AtomicBool>,
    term: Arc<AtomicBool>,
}

static FLAGS: OnceLock<Flags> = OnceLock::new();

/// Installs the handlers of SIGUSR1, SIGTERM and SIGHUP, once for the process, and returns the flag
/// that they set. An ignored SIGHUP, as under nohup, stays ignored.
///
/// # Errors
/// The system refuses a handler.
pub fn listen() -> std::io::Result<Arc<AtomicBool>> {
    use signal_hook::consts::{SIGHUP, SIGTERM, SIGUSR1};
    if let Some(flags) = FLAGS.get() {
        return Ok(flags.stop.clone());
    }
    let flags = Flags { stop: Arc::default(), term: Arc::default() };
    signal_hook::flag::register(SIGUSR1, flags.stop.clone())?;
    signal_hook::flag::register(SIGTERM, flags.stop.clone())?;
    if !is_ignored(SIGHUP) {
        signal_hook::flag::register(SIGHUP, flags.stop.clone())?;
    }
    signal_hook::flag::register(SIGTERM, flags.term.clone())?;
    Ok(FLAGS.get_or_init(|| flags).stop.clone())
}

/// Makes the first SIGINT (Ctrl-C) set the flag of [`listen`], and the second one end the process.
/// Until this is called, SIGINT has its default action, so that a program that is starting ends at
/// once.
///
/// # Errors
/// The system refuses a handler.
pub fn catch_interrupt() -> std::io::Result<()> {
    use signal_hook::consts::SIGINT;
    static CAUGHT: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    if CAUGHT.get().is_some() || is_ignored(SIGINT) {
        return Ok(());
    }
    let (stop, interrupted) = (listen()?, CAUGHT.get_or_init(Arc::default).clone());
    // Handlers run in this order, so the first signal finds the flag unset.
    signal_hook::flag::register_conditional_default(SIGINT, interrupted.clone())?;
    signal_hook::flag::register(SIGINT, interrupted)?;
    signal_hook::flag::register(SIGINT, stop)?;
    Ok(())
}

/// Whether this process was started with a signal ignored, as by nohup, and has no handler for it.
pub(crate) fn is_ignored(signal: i32) -> bool {
    // SAFETY: only reads the current action, into a structure of the caller.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}

/// Whether SIGTERM has been received.
pub(crate) fn terminated() -> bool {
    FLAGS.get().is_some_and(|f| f.term.load(Ordering::Relaxed))
}
