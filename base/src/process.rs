//! Processes of this machine, as `/proc` describes them.

/// A process, identified also by its start time, because process ids are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Process id of its parent.
    pub parent: u32,
    /// Start time in clock ticks since the machine started.
    pub started: u64,
}

/// Returns the running process with this id; `None` if there is none, or it has ended and only its
/// exit code is left.
pub fn find(pid: u32) -> Option<Process> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the program's name in parentheses, may contain anything, also a part of a
    // character.
    let stat = String::from_utf8_lossy(&stat);
    // Field 3 of proc_pid_stat(5) and those after it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if fields.first().is_some_and(|state| ["Z", "X"].contains(state)) {
        return None;
    }
    Some(Process {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_found_until_it_has_ended() {
        let own = find(std::process::id()).unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let found = find(child.id()).unwrap();
        assert_eq!(found.parent, own.pid);
        assert!(found.started >= own.started);
        child.kill().unwrap();
        let began = std::time::Instant::now();
        while find(child.id()).is_some() && began.elapsed().as_secs() < 10 {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        // Its exit code has not been read.
        assert_eq!(find(child.id()), None);
        child.wait().unwrap();
    }
}
