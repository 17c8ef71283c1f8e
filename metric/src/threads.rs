//! The thread pool of an evaluation.

use std::error::Error as _;

use dw_base::{Error, Result};

/// Limit on the threads per core.
const MAX_THREADS_PER_CORE: usize = 4;

/// Starts rayon's global pool, unless it is running already, with `RAYON_NUM_THREADS` threads or
/// one per core.
///
/// # Errors
/// [`Error::Usage`] for more than four threads per core, before any is started;
/// [`Error::OutOfResources`] for threads that cannot be started.
pub(crate) fn start() -> Result<()> {
    const VARIABLE: &str = "RAYON_NUM_THREADS";
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let asked = std::env::var(VARIABLE).ok().and_then(|v| v.parse::<usize>().ok()).unwrap_or(0);
    let max = MAX_THREADS_PER_CORE.saturating_mul(cores);
    if asked > max {
        return Err(Error::Usage(format!(
            "{VARIABLE}: expected at most {max} threads ({MAX_THREADS_PER_CORE} for each of \
             {cores} cores), found {asked}"
        )));
    }
    match rayon::ThreadPoolBuilder::new().build_global() {
        // An error without a source means that the pool is running already.
        Err(e) if e.source().is_some() => {
            Err(Error::threads(&format!("the evaluation's threads ({VARIABLE})"), &e))
        }
        _ => Ok(()),
    }
}
