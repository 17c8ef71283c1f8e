//! The thread pool of an evaluation.

use std::error::Error as _;

use dw_base::threads::{VARIABLE, number};
use dw_base::{Error, Result};

/// Starts rayon's global pool with `RAYON_NUM_THREADS` threads or one per core, unless the pool is
/// already running.
///
/// # Errors
/// [`Error::Usage`] for a variable that is not a number or exceeds four threads per core, before
/// any thread is started; [`Error::OutOfResources`] for threads that cannot be started.
pub(crate) fn start() -> Result<()> {
    let threads = number((VARIABLE, 0))?;
    match rayon::ThreadPoolBuilder::new().num_threads(threads).build_global() {
        // An error without a source means that the pool is running already.
        Err(e) if e.source().is_some() => {
            Err(Error::threads(&format!("the evaluation's threads ({VARIABLE})"), &e))
        }
        _ => Ok(()),
    }
}
