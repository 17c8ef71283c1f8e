//! Signals that ask a rank to end: USR1 and TERM set a flag that the ranks agree on at their next step. TERM also sets a
//! clock: a rank whose peers are gone must not wait for them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// What a checkpoint may take after a TERM (SLURM's default KillWait is 30 s).
pub const TERM_GRACE: Duration = Duration::from_secs(25);

struct Flags {
    stop: Arc<AtomicBool>,
    term: Arc<AtomicBool>,
}

static FLAGS: OnceLock<Flags> = OnceLock::new();

/// Listens from now on; returns the flag that a signal sets.
///
/// # Errors
/// The system does not allow it.
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

/// A TERM has come.
pub(crate) fn terminated() -> bool {
    FLAGS.get().is_some_and(|f| f.term.load(Ordering::Relaxed))
}
