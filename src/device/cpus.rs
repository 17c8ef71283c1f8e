//! The CPUs that a process may use, and how many ranks share them.

use std::path::{Path, PathBuf};

/// Mount point of control groups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Of `ranks` ranks on this machine, the number that share the CPUs of this rank: all of them, or,
/// if a launcher binds ranks to parts of the CPUs of the job or container (such as a NUMA node or a
/// core), those that are bound to the same part.
pub fn sharers(ranks: usize) -> usize {
    let whole = [of_process(1), of_cgroup()].into_iter().flatten().min();
    match (of_process(0), whole) {
        (Some(own), Some(whole)) => share_of(ranks, own, whole),
        // The number of CPUs is not known.
        _ => ranks,
    }
}

/// Number of ranks on `own` of `whole` CPUs, if launchers distribute ranks evenly.
fn share_of(ranks: usize, own: usize, whole: usize) -> usize {
    ((ranks * own + whole / 2) / whole.max(1)).clamp(1, ranks.max(1))
}

/// Number of CPUs on which a process may run (0: this one). Process 1 of a container may run on all
/// of the container's.
fn of_process(pid: libc::pid_t) -> Option<usize> {
    // SAFETY: an empty set is all zeros.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set outlives the call, which writes at most its size.
    let failed = unsafe { libc::sched_getaffinity(pid, size_of_val(&set), &raw mut set) } != 0;
    // SAFETY: reads the set.
    (!failed).then(|| unsafe { libc::CPU_COUNT(&set) } as usize)
}

/// Number of CPUs of this process's control group, such as that of a SLURM job.
fn of_cgroup() -> Option<usize> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    files(&groups).iter().find_map(|file| count(&std::fs::read_to_string(file).ok()?))
}

/// Files that may list the CPUs of a control group, given the text of `/proc/self/cgroup`: of the
/// group itself, then of the groups that contain it, from the innermost on.
fn files(groups: &str) -> Vec<PathBuf> {
    let mut found = vec![];
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, name) = match controllers {
            "" => (PathBuf::from(CGROUPS), "cpuset.cpus.effective"),
            c if c.split(',').any(|c| c == "cpuset") => {
                (Path::new(CGROUPS).join("cpuset"), "cpuset.effective_cpus")
            }
            _ => continue,
        };
        let group = Path::new(path.trim_start_matches('/'));
        found.extend(group.ancestors().map(|group| root.join(group).join(name)));
    }
    found
}

/// Number of CPUs of a list such as `0-3,8`.
fn count(list: &str) -> Option<usize> {
    let mut total = 0;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        total += (last + 1).checked_sub(first)?;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_counted() {
        for (list, expected) in
            [("0-3,8\n", Some(5)), ("7", Some(1)), ("", None), ("3-1", None), ("0-", None)]
        {
            assert_eq!(count(list), expected, "{list:?}");
        }
        let own = of_process(0).unwrap();
        assert!((1..=of_process(1).unwrap()).contains(&own), "{own}");
    }

    #[test]
    fn control_groups_of_both_versions_are_found() {
        let names = |text: &str| {
            files(text).iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            names("0::/slurm/job_7\n"),
            "/sys/fs/cgroup/slurm/job_7/cpuset.cpus.effective \
             /sys/fs/cgroup/slurm/cpuset.cpus.effective /sys/fs/cgroup/cpuset.cpus.effective"
        );
        assert_eq!(
            names("4:memory:/a\n3:cpuset,cpu:/docker/x\n"),
            "/sys/fs/cgroup/cpuset/docker/x/cpuset.effective_cpus \
             /sys/fs/cgroup/cpuset/docker/cpuset.effective_cpus \
             /sys/fs/cgroup/cpuset/cpuset.effective_cpus"
        );
    }

    #[test]
    fn bound_ranks_share_their_part_with_those_bound_to_the_same() {
        for (ranks, own, whole, expected) in [
            (8, 96, 96, 8),
            // Two NUMA nodes, a share for each rank, a core for each rank.
            (8, 48, 96, 4),
            (8, 12, 96, 1),
            (8, 1, 96, 1),
            (1, 96, 96, 1),
            // More ranks than CPUs.
            (5, 2, 2, 5),
            (3, 1, 2, 2),
        ] {
            assert_eq!(share_of(ranks, own, whole), expected, "{ranks} ranks, {own} of {whole}");
        }
    }

    /// A process on one CPU of several shares it with fewer ranks.
    #[test]
    fn a_bound_process_is_noticed() {
        let all = of_process(0).unwrap();
        if all < 2 || sharers(all) != all {
            return;
        }
        let on_one = std::thread::spawn(move || {
            // SAFETY: an empty set is all zeros; sched_setaffinity reads it, for this thread only.
            unsafe {
                let mut set: libc::cpu_set_t = std::mem::zeroed();
                let mut mine: libc::cpu_set_t = std::mem::zeroed();
                libc::sched_getaffinity(0, size_of_val(&mine), &raw mut mine);
                let first = (0..1024).find(|i| libc::CPU_ISSET(*i, &mine)).unwrap();
                libc::CPU_SET(first, &mut set);
                assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &raw const set), 0);
            }
            sharers(all)
        });
        assert_eq!(on_one.join().unwrap(), 1);
    }
}
