//! CPU threads of a rank: their number, whether the machine can start them, and how OpenMP's
//! threads wait for work.

use std::os::unix::process::CommandExt;
use std::sync::mpsc;

use dw_base::threads::MAX_PER_CORE;
use dw_launch::Topology;

use super::cpus;
use crate::{Error, Result};

/// OpenMP's variable for the number of threads.
const VARIABLE: &str = "OMP_NUM_THREADS";

/// The cores that a rank may use, and the number of ranks that share them.
fn cores(topology: &Topology) -> (usize, usize) {
    // With the limits of a container.
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    (available, cpus::sharers(topology.local_size))
}

/// A rank's share of its node's cores, at least 1.
pub fn share(topology: &Topology) -> usize {
    let (cores, ranks) = cores(topology);
    (cores / ranks).max(1)
}

/// Number of threads that OpenMP's variable asks for; `None` if it is not set, or not to a number.
fn of_environment() -> Option<usize> {
    let value = std::env::var(VARIABLE).ok()?;
    // The value can be a list, one number for each level of nested parallel regions.
    value.split(',').next()?.trim().parse().ok().filter(|n| *n > 0)
}

/// Number of threads of a rank: as configured, or (0) that of OpenMP's variable, or its share of
/// the node's cores.
///
/// # Errors
/// More than four threads per core, unless this is a dry run.
pub fn resolve(configured: usize, topology: &Topology, dry_run: bool) -> Result<usize> {
    match (configured, of_environment()) {
        (0, None) => Ok(share(topology)),
        (0, Some(n)) => check(VARIABLE, n, topology, dry_run).map(|()| n),
        (n, _) => check("train.threads", n, topology, dry_run).map(|()| n),
    }
}

/// Checks the number of threads that the key or variable `key` asks for against the machine, before
/// any is started. A dry run starts none and only warns, so that a configuration for a large
/// machine can be inspected on a small one.
///
/// # Errors
/// More than four threads per core.
pub fn check(key: &str, configured: usize, topology: &Topology, dry_run: bool) -> Result<()> {
    let (cores, ranks) = cores(topology);
    if configured <= 1 || configured.saturating_mul(ranks) <= cores {
        return Ok(());
    }
    let of_ranks = if ranks > 1 { format!(" on each of {ranks} ranks") } else { String::new() };
    let text = format!(
        "{key} = {configured}: more threads{of_ranks} than the machine has cores ({cores})"
    );
    if configured.saturating_mul(ranks) > MAX_PER_CORE * cores && !dry_run {
        let hint = format!(
            "hint: leave it unset to divide the cores among the ranks; at most {} threads ({} per \
             core) are allowed",
            MAX_PER_CORE * cores,
            MAX_PER_CORE
        );
        return Err(Error::Usage(format!("{text}\n{hint}")));
    }
    if topology.rank == 0 {
        tracing::warn!("{text}");
    }
    Ok(())
}

/// Number of threads for an evaluation. The configuration can come from another machine, so this is
/// never more than one thread per core.
pub fn for_this_machine(configured: usize, topology: &Topology) -> usize {
    let share = share(topology);
    let (name, wanted) = match configured {
        0 => (VARIABLE, of_environment().unwrap_or(share)),
        n => ("train.threads", n),
    };
    if wanted > share && topology.rank == 0 {
        tracing::info!(
            "{name} = {wanted} is more than a rank's share of this machine: using {share}"
        );
    }
    wanted.min(share)
}

/// Checks that `count` more threads can be started, by starting them. libgomp ends the process when
/// it cannot start one.
///
/// # Errors
/// [`Error::OutOfResources`].
pub fn probe(count: usize) -> Result<()> {
    let mut waiting = vec![];
    for i in 0..count {
        let (end, wait) = mpsc::channel::<()>();
        let started = std::thread::Builder::new().spawn(move || {
            let _ = wait.recv();
        });
        let thread = started.map_err(|e| refused(&format!("thread {} of {count}", i + 1), &e))?;
        waiting.push((end, thread));
    }
    for (end, thread) in waiting {
        drop(end);
        // The thread only waits; it has no result.
        let _ = thread.join();
    }
    Ok(())
}

/// The error for a thread that could not be started.
pub fn refused(what: &str, e: &std::io::Error) -> Error {
    Error::OutOfResources(format!(
        "cannot start {what}: {e}\nhint: reduce train.threads and data.workers, or raise the limit \
         of processes (ulimit -u) or memory"
    ))
}

/// Variables with which a user configures how OpenMP's threads wait.
const WAITING: [&str; 3] = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"];

/// Makes OpenMP's idle threads sleep instead of spin, unless the user has configured it.
///
/// By default they spin for milliseconds after each parallel region, which takes the cores from
/// other ranks, loader threads and other jobs. libgomp reads its variables when it is loaded,
/// before `main`, so the program executes itself once more with the variable set. Must be called
/// first in `main`, before MPI or any thread exists. Measurements: `docs/performance.md`.
pub fn wait_passively() {
    if WAITING.iter().any(|name| std::env::var_os(name).is_some()) {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut args = std::env::args_os();
    let mut again = std::process::Command::new(program);
    if let Some(name) = args.next() {
        again.arg0(name);
    }
    // Returns only on failure; the run is correct without it.
    let _ = again.args(args).env(WAITING[0], "passive").exec();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_threads_are_refused_before_any_is_started() {
        let alone = Topology { rank: 0, world_size: 1, local_rank: 0, local_size: 1 };
        let (cores, _) = cores(&alone);
        assert!(check("train.threads", cores, &alone, false).is_ok());
        assert!(check("train.threads", 4 * cores, &alone, false).is_ok());
        assert!(
            check("train.threads", 4 * cores + 1, &alone, true).is_ok(),
            "a dry run starts none"
        );
        let e = check("train.threads", 4 * cores + 1, &alone, false).unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains("train.threads"), "{e}");
        let crowded = Topology { world_size: 8, local_size: 8 * cores, ..alone };
        assert!(check("train.threads", 1, &crowded, false).is_ok(), "one thread is the least");
        assert_eq!(share(&crowded), 1);
        assert_eq!(for_this_machine(1000, &alone), cores);
        probe(3).unwrap();
    }
}
