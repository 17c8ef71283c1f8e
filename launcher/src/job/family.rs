//! The processes that a launcher has started on this machine. mpirun gives each rank a process
//! group of its own, which a signal to the group of the launcher does not reach.

use std::collections::HashMap;

use dw_base::process::{Process, find};

/// The descendants of a process at one time.
#[derive(Debug, Default)]
pub(super) struct Family(Vec<Process>);

impl Family {
    /// All descendants of the process `root`, without itself.
    pub(super) fn of(root: u32) -> Self {
        let mut children: HashMap<u32, Vec<Process>> = HashMap::new();
        // In a /proc of another PID namespace the same numbers are other processes.
        let own = std::fs::read_link("/proc/self").unwrap_or_default();
        if own.to_str() != Some(&std::process::id().to_string()) {
            return Self::default();
        }
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some(process) = pid.and_then(find) {
                children.entry(process.parent).or_default().push(process);
            }
        }
        let mut family = children.remove(&root).unwrap_or_default();
        let mut at = 0;
        while at < family.len() {
            family.extend(children.remove(&family[at].pid).unwrap_or_default());
            at += 1;
        }
        Self(family)
    }

    /// Sends SIGKILL to those that still run; returns the number of signals sent.
    pub(super) fn kill(&self) -> usize {
        // A process whose parent has ended gets another parent.
        let runs = |p: &&Process| find(p.pid).is_some_and(|now| now.started == p.started);
        // SAFETY: a signal to a process that this job has started.
        let killed = |p: &&Process| unsafe { libc::kill(p.pid as i32, libc::SIGKILL) } == 0;
        self.0.iter().filter(runs).filter(killed).count()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn descendants_in_other_groups_are_found_and_killed() {
        let script = "setsid sh -c 'sleep 60 & wait' & wait";
        let mut child = Command::new("sh").args(["-c", script]).process_group(0).spawn().unwrap();
        let began = std::time::Instant::now();
        let family = loop {
            let family = Family::of(child.id());
            if family.0.len() >= 2 || began.elapsed().as_secs() > 10 {
                break family;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        };
        assert!(family.0.len() >= 2, "{family:?}");
        assert_eq!(family.kill(), family.0.len());
        child.kill().unwrap();
        child.wait().unwrap();
        let began = std::time::Instant::now();
        while family.0.iter().any(|p| find(p.pid).is_some()) && began.elapsed().as_secs() < 10 {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(family.kill(), 0);
    }
}
