//! The threads that share an evaluation.

use std::error::Error as _;

use crate::error::{Error, Result};

/// Most threads for each core.
const MOST_THREADS: usize = 4;

/// Starts rayon's threads, unless the program has done so: as many as `RAYON_NUM_THREADS` says, or one a
/// core.
///
/// # Errors
/// More than four times the cores ([`Error::Usage`], before any starts); threads that the system does not
/// start ([`Error::Resources`]).
pub(crate) fn start() -> Result<()> {
    const VARIABLE: &str = "RAYON_NUM_THREADS";
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let asked = std::env::var(VARIABLE).ok().and_then(|v| v.parse::<usize>().ok()).unwrap_or(0);
    if asked > MOST_THREADS.saturating_mul(cores) {
        let expected = format!("expected at most {MOST_THREADS} threads for each of {cores} cores");
        return Err(Error::Usage(format!("{VARIABLE}={asked}: {expected}")));
    }
    match rayon::ThreadPoolBuilder::new().build_global() {
        // Only a thread that did not start has a cause; else the threads were there before.
        Err(e) if e.source().is_some() => Err(Error::Resources(format!(
            "cannot start the threads of the evaluation: {e}\nhint: a limit of processes or memory is \
             reached (ulimit -u, the cgroup's pids.max); fewer are started with {VARIABLE}"
        ))),
        _ => Ok(()),
    }
}
