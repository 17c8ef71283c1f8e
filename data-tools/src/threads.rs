//! Thread pools of a checked size.

use dw_base::program::print_message;
use dw_base::{Error, Result};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// Rayon's own variable for the number of threads.
const VARIABLE: &str = "RAYON_NUM_THREADS";
/// Most threads per core.
const MAX_PER_CORE: usize = 4;

/// A pool of `jobs` threads; with `jobs = 0` the number in `RAYON_NUM_THREADS`, or one per core.
///
/// # Errors
/// [`Error::Usage`] for more than four threads per core, before any thread is started;
/// [`Error::OutOfResources`] if the system refuses to start them.
pub fn pool(jobs: usize) -> Result<ThreadPool> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let variable = std::env::var(VARIABLE).ok().and_then(|v| v.parse().ok());
    let (threads, setting) = match (jobs, variable) {
        (0, None | Some(0)) => (cores, ""),
        (0, Some(n)) => (n, VARIABLE),
        (n, _) => (n, "--jobs"),
    };
    let limit = cores.saturating_mul(MAX_PER_CORE);
    if threads > limit {
        return Err(Error::Usage(format!(
            "{setting}: expected at most {limit} threads ({MAX_PER_CORE} per core, {cores} cores), \
             found {threads}"
        )));
    }
    if threads > cores {
        print_message(&format!("{setting}: {threads} threads share {cores} cores"));
    }
    let what = format!("{threads} threads (`--jobs` or `{VARIABLE}`)");
    let pool = ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|e| Error::threads(&what, &e))
}
