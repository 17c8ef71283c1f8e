//! Signals that request a checkpoint: SIGUSR1 and SIGTERM set a flag that the ranks combine at
//! their next step. SIGTERM also starts a deadline, which the watchdog enforces: a rank whose peers
//! are gone would otherwise wait for them in the collective before the checkpoint.

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

/// Installs the handlers, once for the process; returns the flag that both signals set.
///
/// # Errors
/// The system refuses a handler.
pub fn listen() -> std::io::Result<Arc<AtomicBool>> {
    use signal_hook::consts::{SIGTERM, SIGUSR1};
    if let Some(flags) = FLAGS.get() {
        return Ok(flags.stop.clone());
    }
    let flags = Flags { stop: Arc::default(), term: Arc::default() };
    signal_hook::flag::register(SIGUSR1, flags.stop.clone())?;
    signal_hook::flag::register(SIGTERM, flags.stop.clone())?;
    signal_hook::flag::register(SIGTERM, flags.term.clone())?;
    Ok(FLAGS.get_or_init(|| flags).stop.clone())
}

/// Whether SIGTERM has been received.
pub(crate) fn terminated() -> bool {
    FLAGS.get().is_some_and(|f| f.term.load(Ordering::Relaxed))
}
