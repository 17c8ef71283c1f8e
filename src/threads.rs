//! CPU threads of a rank: how many there may be, whether the machine gives them, and how OpenMP's
//! threads wait for work.

use std::os::unix::process::CommandExt;
use std::sync::mpsc;

use dw_launch::Topology;

use crate::error::{Error, Result};

/// More threads than this many times the cores are refused.
const MOST_PER_CORE: usize = 4;

/// The cores that a rank may use, and the ranks that share them.
fn cores(topology: &Topology) -> (usize, usize) {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    // SAFETY: asks the system for a number; no preconditions.
    let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }.max(1) as usize;
    // A launcher may have bound this rank to some cores already: those are its own.
    let bound = topology.local_world > 1 && available < online;
    (available, if bound { 1 } else { topology.local_world })
}

/// Threads of a rank: as configured, or (0) its share of the node's cores.
pub fn resolve(configured: usize, topology: &Topology) -> usize {
    let (cores, ranks) = cores(topology);
    if configured > 0 { configured } else { (cores / ranks).max(1) }
}

/// Compares the threads that the key `key` asks for with the machine, before any is started. A dry
/// run, which starts none, only warns: a configuration of a large machine can be looked at on a small one.
///
/// # Errors
/// More than four threads a core.
pub fn check(key: &str, configured: usize, topology: &Topology, dry_run: bool) -> Result<()> {
    let (cores, ranks) = cores(topology);
    if configured <= 1 || configured.saturating_mul(ranks) <= cores {
        return Ok(());
    }
    let of_ranks = if ranks > 1 { format!(" on each of {ranks} ranks") } else { String::new() };
    let text = format!(
        "{key} = {configured}: more threads{of_ranks} than the machine has cores ({cores})"
    );
    if configured.saturating_mul(ranks) > MOST_PER_CORE * cores && !dry_run {
        let hint = format!(
            "hint: 0 shares the cores among the ranks; at most {MOST_PER_CORE} threads a core are allowed"
        );
        return Err(Error::Usage(format!("{text}\n{hint}")));
    }
    if topology.rank == 0 {
        tracing::warn!("{text}");
    }
    Ok(())
}

/// Threads for an evaluation, whose configuration may be of another machine: never more than a core each.
pub fn for_this_machine(configured: usize, topology: &Topology) -> usize {
    let share = resolve(0, topology);
    if configured > share && topology.rank == 0 {
        tracing::info!(
            "train.threads = {configured} is more than this machine's share of a rank: using {share}"
        );
    }
    if configured == 0 { share } else { configured.min(share) }
}

/// Finds out whether `count` more threads can be started, by starting them. libgomp ends the process
/// when it cannot start one.
///
/// # Errors
/// They cannot.
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
        // It only waits: there is no result to lose.
        let _ = thread.join();
    }
    Ok(())
}

/// A thread that could not be started.
pub fn refused(what: &str, e: &std::io::Error) -> Error {
    Error::Resources(format!(
        "cannot start {what}: {e}\nhint: fewer train.threads and data.workers, or a higher limit of processes (ulimit -u) or memory"
    ))
}

/// Variables by which a user chooses how OpenMP's threads wait.
const WAITING: [&str; 3] = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"];

/// Makes OpenMP's idle threads sleep instead of spin, unless the user has chosen.
///
/// By default they spin for milliseconds after each parallel region and take the cores from whoever
/// has work: other ranks, loader threads, other jobs. libgomp reads its variables when it is loaded,
/// before `main`; so the program replaces itself once by itself with the variable set. Called first in
/// `main`, before MPI or any thread exists. `docs/performance.md` has the measurements.
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
    // Only returns when it fails; the run is correct without it.
    let _ = again.args(args).env(WAITING[0], "passive").exec();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_threads_are_refused_before_any_starts() {
        let alone = Topology { rank: 0, world: 1, local_rank: 0, local_world: 1 };
        let (cores, _) = cores(&alone);
        assert!(check("train.threads", cores, &alone, false).is_ok());
        assert!(check("train.threads", 4 * cores, &alone, false).is_ok());
        assert!(
            check("train.threads", 4 * cores + 1, &alone, true).is_ok(),
            "a dry run starts none"
        );
        let e = check("train.threads", 4 * cores + 1, &alone, false).unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains("train.threads"), "{e}");
        let crowded = Topology { world: 8, local_world: 8 * cores, ..alone };
        assert!(check("train.threads", 1, &crowded, false).is_ok(), "one thread is the least");
        assert_eq!(resolve(0, &crowded), 1);
        assert_eq!(for_this_machine(1000, &alone), cores);
        probe(3).unwrap();
    }
}
