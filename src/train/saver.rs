//! Writes checkpoints while training goes on: the step loop pays for a copy of the weights, a thread for the disk.

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Instant;

use super::checkpoint::{self, Snapshot};
use crate::config::{CheckpointConfig, OnError};
use crate::error::{Error, Result};

/// The writer of one rank.
pub struct Saver {
    dir: PathBuf,
    keep: usize,
    on_error: OnError,
    writing: Option<JoinHandle<Result<()>>>,
}

impl Saver {
    /// Nothing is written yet. `dir`: the folder of checkpoints.
    pub fn new(dir: PathBuf, config: &CheckpointConfig) -> Self {
        Self { dir, keep: config.keep, on_error: config.on_error, writing: None }
    }

    /// Begins to write. A write that is still under way is waited for, unless this one may be left out: then it is, where the run
    /// is to go on without. `best`: the step whose checkpoint is kept.
    ///
    /// # Errors
    /// The write before failed, and the run is to end then.
    pub fn save(&mut self, snapshot: impl FnOnce() -> Snapshot, best: Option<usize>, may_skip: bool) -> Result<()> {
        if may_skip && self.on_error == OnError::Continue && self.writing.as_ref().is_some_and(|w| !w.is_finished()) {
            tracing::warn!("the checkpoint before is still being written: this one is left out");
            return Ok(());
        }
        let before = self.wait();
        self.tolerate(before)?;
        let (dir, keep, snapshot) = (self.dir.clone(), self.keep, snapshot());
        let write = move || {
            let (began, step) = (Instant::now(), snapshot.step());
            let path = checkpoint::save(&dir, &snapshot)?;
            checkpoint::prune(&dir, step, keep, best)?;
            tracing::info!("checkpoint {} ({:.1} s)", path.display(), began.elapsed().as_secs_f64());
            Ok(())
        };
        let thread = std::thread::Builder::new().name("dw-checkpoint".into()).spawn(write);
        self.writing = Some(thread.map_err(Error::io("cannot start a thread to write", &self.dir))?);
        Ok(())
    }

    /// Takes note of a write that has ended. Returns at once.
    ///
    /// # Errors
    /// As [`Saver::save`].
    pub fn look(&mut self) -> Result<()> {
        if self.writing.as_ref().is_some_and(JoinHandle::is_finished) {
            let ended = self.wait();
            return self.tolerate(ended);
        }
        Ok(())
    }

    /// Waits for the last write.
    ///
    /// # Errors
    /// It failed: a run must not end as if its last checkpoint were there, whatever is configured.
    pub fn finish(&mut self) -> Result<()> {
        self.wait()
    }

    /// An error of writing results is told and forgotten where the run is to go on without them.
    ///
    /// # Errors
    /// The same error, where the run is to end with it.
    pub fn tolerate(&self, written: Result<()>) -> Result<()> {
        match written {
            Err(e) if self.on_error == OnError::Continue => {
                tracing::error!("{e}\ntraining goes on without it (checkpoint.on_error = \"continue\")");
                Ok(())
            }
            other => other,
        }
    }

    fn wait(&mut self) -> Result<()> {
        let Some(thread) = self.writing.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| Err(Error::Data(format!("the thread that writes to {} ended early", self.dir.display()))))
    }
}
