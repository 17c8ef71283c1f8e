//! How many threads, and what happens when they do not start.

#![expect(clippy::print_stderr, reason = "the command line's own output")]

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use crate::error::{Error, Result};

/// A pool of `jobs` threads; 0: as many as rayon's own variable says, or one a core.
///
/// # Errors
/// More than four times the cores ([`Error::Usage`], before any thread starts); threads that cannot
/// be started ([`Error::Resources`]).
pub fn pool(jobs: usize) -> Result<ThreadPool> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let variable = std::env::var("RAYON_NUM_THREADS").ok().and_then(|v| v.parse().ok());
    let (threads, said_by) = match (jobs, variable) {
        (0, None | Some(0)) => (cores, ""),
        (0, Some(n)) => (n, "RAYON_NUM_THREADS"),
        (n, _) => (n, "--jobs"),
    };
    if threads > cores.saturating_mul(4) {
        return Err(Error::Usage(format!(
            "{said_by}: expected at most {} threads (4 for each of {cores} cores), found {threads}",
            cores * 4
        )));
    }
    if threads > cores {
        eprintln!("{said_by}: {threads} threads share {cores} cores");
    }
    ThreadPoolBuilder::new().num_threads(threads).build().map_err(|e| not_started(threads, &e))
}

fn not_started(threads: usize, e: &ThreadPoolBuildError) -> Error {
    Error::Resources(format!(
        "cannot start {threads} threads: {e}\nhint: fewer threads (--jobs or RAYON_NUM_THREADS), or \
         a higher limit of processes (ulimit -u) or memory"
    ))
}
