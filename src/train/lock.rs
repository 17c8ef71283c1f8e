//! One run at a time in a work directory: two would overwrite each other's checkpoints and metrics.
//!
//! `run.lock` is held with `flock` for as long as the process lives, so that the kernel frees it however
//! the process ends, and says who holds it. Locks of other hosts are judged by what is written in it,
//! since `flock` does not reach across hosts on every file system.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dw_base::text::shown;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Name of the file in the work directory.
pub const NAME: &str = "run.lock";
/// How long the processes of a run that was just ended may take to be gone.
const GRACE: Duration = Duration::from_secs(10);

/// Who holds a work directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    host: String,
    pid: u32,
    /// Clock ticks from the machine's start to the process's: tells it from a later one of that number.
    started: u64,
    /// Unix time, seconds.
    since: u64,
    /// SLURM's job, whose requeued second start may run on another host.
    slurm_job: Option<String>,
}

impl Owner {
    fn this_process() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            host: dw_launch::host(),
            pid: std::process::id(),
            started: start_of(std::process::id()).unwrap_or_default(),
            since: now.map_or(0, |d| d.as_secs()),
            slurm_job: std::env::var("SLURM_JOB_ID").ok(),
        }
    }

    fn is_alive(&self) -> bool {
        start_of(self.pid).is_some_and(|started| started == self.started)
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} on {}", self.pid, shown(&self.host))?;
        if let Some(job) = &self.slurm_job {
            write!(f, " (SLURM job {})", shown(job))?;
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let ago = Duration::from_secs(now.map_or(0, |d| d.as_secs()).saturating_sub(self.since));
        write!(f, ", started {} ago", indicatif::HumanDuration(ago))
    }
}

/// Field 22 of `/proc/PID/stat`; `None` when there is no such process.
fn start_of(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// A held work directory; dropping it frees it.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Takes the work directory `dir`, which must exist.
    ///
    /// # Errors
    /// Another run holds it (exit code 2), or the file cannot be written (3).
    pub fn take(dir: &Path) -> Result<Self> {
        let path = dir.join(NAME);
        let began = Instant::now();
        let mut told = false;
        loop {
            let file =
                OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
            let file = file.map_err(Error::io("cannot open", &path))?;
            let held = match file.try_lock() {
                Ok(()) => false,
                Err(TryLockError::WouldBlock) => true,
                Err(TryLockError::Error(e)) => {
                    tracing::debug!(
                        "{}: this file system has no locks ({e}): judged by what is written there",
                        path.display()
                    );
                    false
                }
            };
            if !held && !is_at(&file, &path) {
                // The holder before has just removed it.
                continue;
            }
            let owner = read(&file);
            let foreign = owner.as_ref().filter(|o| held || stands(o));
            if !held && foreign.is_none() {
                if let Some(gone) = owner {
                    tracing::info!("{}: taking over from {gone}, which has ended", path.display());
                }
                write(&file).map_err(Error::io("cannot write", &path))?;
                return Ok(Self { path, file });
            }
            let here = foreign.is_none_or(|o| o.host == dw_launch::host());
            if !here || began.elapsed() > GRACE {
                return Err(refused(dir, foreign, here));
            }
            if !std::mem::replace(&mut told, true) {
                tracing::info!("{}: waiting for the run before to end", path.display());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if is_at(&self.file, &self.path) {
            // What cannot be removed is taken over by the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Whether an entry that no process holds by `flock` still counts.
fn stands(owner: &Owner) -> bool {
    let me = Owner::this_process();
    if owner.host == me.host {
        return owner.pid != me.pid && owner.is_alive();
    }
    // SLURM starts a requeued job only after its first start has ended.
    owner.slurm_job.is_none() || owner.slurm_job != me.slurm_job
}

fn is_at(file: &File, path: &Path) -> bool {
    let id = |m: &std::fs::Metadata| (m.dev(), m.ino());
    matches!((file.metadata(), std::fs::metadata(path)), (Ok(a), Ok(b)) if id(&a) == id(&b))
}

fn read(mut file: &File) -> Option<Owner> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    file.take(1 << 16).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

fn write(mut file: &File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all((serde_json::to_string(&Owner::this_process())? + "\n").as_bytes())?;
    file.sync_all()
}

fn refused(dir: &Path, owner: Option<&Owner>, here: bool) -> Error {
    let who = owner.map_or_else(|| "another process".to_owned(), ToString::to_string);
    let hint = if here {
        "wait for it or end it, or choose another --work-dir".to_owned()
    } else {
        let file = dir.join(NAME);
        format!(
            "whether it still runs cannot be seen from here: if it has ended, remove {}; else choose another --work-dir",
            file.display()
        )
    };
    Error::Usage(format!(
        "{}: another run works in this directory: {who}\nhint: {hint}",
        dir.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leave(dir: &Path, owner: &Owner) {
        fs_err::write(dir.join(NAME), serde_json::to_string(owner).unwrap()).unwrap();
    }

    #[test]
    fn dead_owners_give_way_and_other_hosts_are_explained() {
        let dir = tempfile::tempdir().unwrap();
        let me = Owner::this_process();
        assert!(me.started > 0 && me.is_alive());
        drop(Lock::take(dir.path()).unwrap());
        assert!(!dir.path().join(NAME).exists(), "a run that ends leaves nothing");
        for dead in [
            Owner { started: me.started + 1, ..me.clone() },
            Owner { pid: u32::MAX - 1, ..me.clone() },
        ] {
            leave(dir.path(), &dead);
            drop(Lock::take(dir.path()).unwrap());
        }
        leave(
            dir.path(),
            &Owner { host: "node17\u{1b}[2J".into(), slurm_job: Some("7".into()), ..me },
        );
        let e = Lock::take(dir.path()).unwrap_err();
        let text = e.to_string();
        assert_eq!(e.exit_code(), 2);
        assert!(
            text.contains("node17") && text.contains("remove") && !text.contains('\u{1b}'),
            "{text}"
        );
        fs_err::write(dir.path().join(NAME), "cut off by a full di").unwrap();
        Lock::take(dir.path()).unwrap();
    }
}
