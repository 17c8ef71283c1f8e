//! The lock of a work directory: two runs at once would overwrite each other's checkpoints and
//! metrics.
//!
//! `run.lock` is locked with `flock` for the lifetime of the process, so the kernel releases it
//! however the process ends. The file contains the owner. `flock` does not work across machines on
//! every file system, so the lock of another machine is recognised by the file's contents.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dw_base::process::find;
use dw_base::text::shown;
use dw_launch::restart;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Name of the file in the work directory.
pub const NAME: &str = "run.lock";
/// How long to wait for the process of a previous run on this host to exit.
const GRACE: Duration = Duration::from_secs(10);

/// The owner of a lock, the contents of `run.lock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    host: String,
    /// Id of the machine's current boot; containers on the same machine share it.
    #[serde(default)]
    boot: Option<String>,
    pid: u32,
    /// Start time of the process in clock ticks since boot; distinguishes it from a later process
    /// with the same id.
    started: u64,
    /// When the lock was acquired, Unix time in seconds.
    since: u64,
    /// Id of the SLURM job; a requeued job may run on another host.
    slurm_job: Option<String>,
    /// Number of restarts of the job, by SLURM and by `dw-launch`.
    #[serde(default)]
    restarts: (u64, u64),
}

impl Owner {
    fn this_process() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            host: dw_base::host::name(),
            boot: dw_base::host::boot_id(),
            pid: std::process::id(),
            started: find(std::process::id()).map_or(0, |p| p.started),
            since: now.map_or(0, |d| d.as_secs()),
            slurm_job: std::env::var("SLURM_JOB_ID").ok(),
            restarts: restart::count(),
        }
    }

    /// Whether the process is running, for an owner on this host.
    fn is_alive(&self) -> bool {
        find(self.pid).is_some_and(|p| p.started == self.started)
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

/// A locked work directory; dropping it releases the lock.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    file: File,
}

/// The result of one attempt to lock a folder.
enum Attempt {
    /// It is locked.
    Locked(Lock),
    /// Another process holds the lock: its owner, if the file names one, and whether it is on this
    /// host.
    InUse { owner: Option<Owner>, same_host: bool },
}

impl Lock {
    /// Locks the work directory `dir`, which must exist. Waits up to ten seconds for a previous run
    /// on this host to exit.
    ///
    /// # Errors
    /// Another run holds the lock (exit code 2), or the file cannot be written (3).
    pub fn take(dir: &Path) -> Result<Self> {
        let began = Instant::now();
        let mut logged = false;
        loop {
            let (owner, same_host) = match Self::attempt(dir)? {
                Attempt::Locked(lock) => return Ok(lock),
                Attempt::InUse { owner, same_host } => (owner, same_host),
            };
            if !same_host || began.elapsed() > GRACE {
                return Err(locked_by_another_run(dir, owner.as_ref(), same_host));
            }
            if !std::mem::replace(&mut logged, true) {
                tracing::info!(
                    "{}: waiting for the previous run to exit",
                    dir.join(NAME).display()
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Locks the folder `dir`, which must exist. If another process holds the lock, returns a
    /// description of it, with a hint if only the user can tell whether it is still running.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn try_take(dir: &Path) -> Result<std::result::Result<Self, String>> {
        Ok(match Self::attempt(dir)? {
            Attempt::Locked(lock) => Ok(lock),
            Attempt::InUse { owner, same_host } => {
                let owner = owner.map_or_else(|| "another process".to_owned(), |o| o.to_string());
                let file = dir.join(NAME);
                Err(if same_host {
                    owner
                } else {
                    format!("{owner}\nhint: if it has ended, remove {}", file.display())
                })
            }
        })
    }

    fn attempt(dir: &Path) -> Result<Attempt> {
        let path = dir.join(NAME);
        loop {
            let file =
                OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
            let file = file.map_err(Error::io("cannot open", &path))?;
            let (locked, supported) = match file.try_lock() {
                Ok(()) => (false, true),
                Err(TryLockError::WouldBlock) => (true, true),
                Err(TryLockError::Error(e)) => {
                    tracing::debug!(
                        "{}: the file system does not support locks ({e}): relying on the contents",
                        path.display()
                    );
                    (false, false)
                }
            };
            if !locked && !is_at(&file, &path) {
                // The previous owner removed the file after this process had opened it.
                continue;
            }
            let owner = read(&file);
            let other = owner.as_ref().filter(|o| locked || is_in_use(o, supported));
            if !locked && other.is_none() {
                if let Some(previous) = owner {
                    tracing::info!(
                        "{}: taking over from {previous}, which has exited",
                        path.display()
                    );
                }
                write(&file).map_err(Error::io("cannot write", &path))?;
                return Ok(Attempt::Locked(Self { path, file }));
            }
            let other = other.cloned();
            let same_host = other.as_ref().is_none_or(|o| {
                let me = Owner::this_process();
                o.host == me.host || (supported && o.boot.is_some() && o.boot == me.boot)
            });
            return Ok(Attempt::InUse { owner: other, same_host });
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if is_at(&self.file, &self.path) {
            // If this fails, the next attempt takes over the lock of an exited process.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Whether the owner named in a lock file may still be running although its `flock` was not found.
/// `supported`: whether the file system supports `flock`.
fn is_in_use(owner: &Owner, supported: bool) -> bool {
    let me = Owner::this_process();
    // A lock held by a process on the same kernel would be visible, even from another container.
    if supported && owner.boot.is_some() && owner.boot == me.boot {
        return false;
    }
    if owner.host == me.host {
        return owner.pid != me.pid && owner.is_alive();
    }
    // A job is restarted only after the previous attempt has ended. Without a restart, another run
    // of the same job has the lock.
    let is_earlier = owner.slurm_job == me.slurm_job && owner.restarts < me.restarts;
    owner.slurm_job.is_none() || !is_earlier
}

/// Whether the open file is the one at `path`.
fn is_at(file: &File, path: &Path) -> bool {
    let id = |m: &std::fs::Metadata| (m.dev(), m.ino());
    matches!((file.metadata(), std::fs::metadata(path)), (Ok(a), Ok(b)) if id(&a) == id(&b))
}

/// The owner in a lock file; `None` if the file is empty or incomplete.
fn read(mut file: &File) -> Option<Owner> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    file.take(1 << 16).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

/// Writes this process as the owner.
fn write(mut file: &File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all((serde_json::to_string(&Owner::this_process())? + "\n").as_bytes())?;
    file.sync_all()
}

/// The error for a work directory that another run has locked.
fn locked_by_another_run(dir: &Path, owner: Option<&Owner>, same_host: bool) -> Error {
    let owner = owner.map_or_else(|| "another process".to_owned(), ToString::to_string);
    let hint = if same_host {
        "wait until it has exited or stop it, or choose another --work-dir".to_owned()
    } else {
        let file = dir.join(NAME);
        format!(
            "this host cannot check whether it is still running: if it has ended, remove {}; \
             otherwise choose another --work-dir",
            file.display()
        )
    };
    Error::Usage(format!(
        "{}: another run uses this work directory: {owner}\nhint: {hint}",
        dir.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_lock(dir: &Path, owner: &Owner) {
        std::fs::write(dir.join(NAME), serde_json::to_string(owner).unwrap()).unwrap();
    }

    #[test]
    fn locks_of_exited_processes_are_taken_over_and_those_of_other_hosts_reported() {
        let dir = tempfile::tempdir().unwrap();
        let me = Owner::this_process();
        assert!(me.started > 0 && me.is_alive());
        drop(Lock::take(dir.path()).unwrap());
        assert!(!dir.path().join(NAME).exists(), "dropping the lock removes the file");
        for dead in [
            Owner { started: me.started + 1, ..me.clone() },
            Owner { pid: u32::MAX - 1, ..me.clone() },
        ] {
            write_lock(dir.path(), &dead);
            drop(Lock::take(dir.path()).unwrap());
        }
        write_lock(
            dir.path(),
            &Owner {
                host: "node17\u{1b}[2J".into(),
                boot: Some("another".into()),
                slurm_job: Some("7".into()),
                ..me.clone()
            },
        );
        let e = Lock::take(dir.path()).unwrap_err();
        let text = e.to_string();
        assert_eq!(e.exit_code(), 2);
        assert!(
            text.contains("node17") && text.contains(NAME) && !text.contains('\u{1b}'),
            "{text}"
        );
        // A container that was started again: another host name on the same machine.
        write_lock(dir.path(), &Owner { host: "container".into(), ..me });
        drop(Lock::take(dir.path()).unwrap());
        std::fs::write(dir.path().join(NAME), "{\"host\": \"nod").unwrap();
        Lock::take(dir.path()).unwrap();
    }
}
