//! Thread pools of a checked size.

use dw_base::threads::{VARIABLE, number};
use dw_base::{Error, Result};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// A pool of `jobs` threads; with `jobs = 0` the number in `RAYON_NUM_THREADS`, or one per core.
///
/// # Errors
/// [`Error::Usage`] for more than four threads per core, before any thread is started;
/// [`Error::OutOfResources`] if the system refuses to start them.
pub fn pool(jobs: usize) -> Result<ThreadPool> {
    let threads = number(("--jobs", jobs))?;
    let what = format!("{threads} threads (`--jobs` or `{VARIABLE}`)");
    let pool = ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|e| Error::threads(&what, &e))
}
