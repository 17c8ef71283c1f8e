//! The processes that a launcher has started on this machine. mpirun gives each rank a process
//! group of its own, which a signal to the group of the launcher does not reach.

use std::collections::HashMap;

/// The descendants of a process at one time.
#[derive(Debug, Default)]
pub(super) struct Family(Vec<Member>);

/// A process, identified also by its start time, because process ids are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Member {
    pid: i32,
    /// In clock ticks since the machine started.
    started: u64,
}

impl Family {
    /// All descendants of the process `root`, without itself.
    pub(super) fn of(root: u32) -> Self {
        let mut children: HashMap<i32, Vec<Member>> = HashMap::new();
        // In a /proc of another PID namespace the same numbers are other processes.
        let own = std::fs::read_link("/proc/self").unwrap_or_default();
        if own.to_str() != Some(&std::process::id().to_string()) {
            return Self::default();
        }
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some((parent, member)) = pid.and_then(read) {
                children.entry(parent).or_default().push(member);
            }
        }
        let mut family = children.remove(&(root as i32)).unwrap_or_default();
        let mut at = 0;
        while at < family.len() {
            family.extend(children.remove(&family[at].pid).unwrap_or_default());
            at += 1;
        }
        Self(family)
    }

    /// Sends SIGKILL to those that still run; returns the number of signals sent.
    pub(super) fn kill(&self) -> usize {
        let runs = |m: &&Member| read(m.pid).is_some_and(|(_, now)| now == **m);
        // SAFETY: a signal to a process that this job has started.
        let killed = |m: &&Member| unsafe { libc::kill(m.pid, libc::SIGKILL) } == 0;
        self.0.iter().filter(runs).filter(killed).count()
    }
}

/// The parent of a process, and its identity; `None` if it has ended.
fn read(pid: i32) -> Option<(i32, Member)> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything, also a part of a character.
    let stat = String::from_utf8_lossy(&stat);
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if fields.first().is_some_and(|state| ["Z", "X"].contains(state)) {
        return None;
    }
    Some((fields.get(1)?.parse().ok()?, Member { pid, started: fields.get(19)?.parse().ok()? }))
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
        while family.0.iter().any(|m| read(m.pid).is_some()) && began.elapsed().as_secs() < 10 {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(family.kill(), 0);
    }
}
