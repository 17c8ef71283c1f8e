//! Writes checkpoints in the background: the training loop only waits for the copy of the tensors.

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::checkpoint;
use super::config::{CheckpointConfig, OnError};
use super::snapshot::Snapshot;
use crate::{Error, Result};

/// Shortest time between two log messages about the same failure.
const REPORT_INTERVAL: Duration = Duration::from_mins(5);

/// Writes checkpoints, and handles failures to write results (`checkpoint.on_error`).
pub struct Saver {
    /// Folder of the checkpoints.
    dir: PathBuf,
    keep: usize,
    on_error: OnError,
    /// The pending write.
    pending: Option<JoinHandle<Result<()>>>,
    /// When the last checkpoint was started or skipped.
    last_save: Instant,
    /// Outputs whose last write failed.
    failures: Vec<Failure>,
}

/// An output whose last write failed.
struct Failure {
    output: Output,
    /// When it was last logged.
    logged: Instant,
    /// Failures since then, which were not logged.
    unlogged: usize,
}

/// A kind of result of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// A checkpoint.
    Checkpoint,
    /// Rows of `metrics.jsonl`.
    Metrics,
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Checkpoint => "checkpoints",
            Self::Metrics => "metrics.jsonl",
        })
    }
}

impl Saver {
    /// A writer of checkpoints into the folder `dir`.
    pub fn new(dir: PathBuf, config: &CheckpointConfig) -> Self {
        let (keep, on_error) = (config.keep, config.on_error);
        Self { dir, keep, on_error, pending: None, last_save: Instant::now(), failures: vec![] }
    }

    /// Time since the last checkpoint was started or skipped, or since the start of the run.
    pub fn age(&self) -> Duration {
        self.last_save.elapsed()
    }

    /// Starts to write a checkpoint. Checkpoints that are no longer needed are removed afterwards;
    /// `best` lists the evaluated steps by descending AP, for [`checkpoint::prune`]. Waits for a
    /// pending write first, or skips this checkpoint if `may_skip`.
    ///
    /// # Errors
    /// The previous write failed and `checkpoint.on_error = "stop"`, the snapshot failed, or the
    /// thread cannot be started.
    pub fn save(
        &mut self,
        snapshot: impl FnOnce() -> Result<Snapshot>,
        best: Vec<usize>,
        may_skip: bool,
    ) -> Result<()> {
        self.last_save = Instant::now();
        if may_skip && self.pending.as_ref().is_some_and(|w| !w.is_finished()) {
            tracing::warn!("the previous checkpoint is still being written: skipping this one");
            return Ok(());
        }
        // Without a pending write there is no result, neither good nor bad.
        if self.pending.is_some() {
            let previous = self.wait();
            self.handle_write(Output::Checkpoint, previous)?;
        }
        let (dir, keep, snapshot) = (self.dir.clone(), self.keep, snapshot()?);
        let write = move || {
            let (began, step) = (Instant::now(), snapshot.step());
            let path = checkpoint::save(&dir, &snapshot)?;
            checkpoint::prune(&dir, step, keep, &best);
            tracing::info!(
                "checkpoint {} ({:.1} s)",
                path.display(),
                began.elapsed().as_secs_f64()
            );
            Ok(())
        };
        let thread = std::thread::Builder::new().name("dw-checkpoint".into()).spawn(write);
        self.pending =
            Some(thread.map_err(|e| crate::device::threads::refused("the checkpoint thread", &e))?);
        Ok(())
    }

    /// Handles the result of a pending write if it has finished; does not block.
    ///
    /// # Errors
    /// The write failed and `checkpoint.on_error = "stop"`.
    pub fn poll(&mut self) -> Result<()> {
        if self.pending.as_ref().is_some_and(JoinHandle::is_finished) {
            let result = self.wait();
            return self.handle_write(Output::Checkpoint, result);
        }
        Ok(())
    }

    /// Waits for the pending write.
    ///
    /// # Errors
    /// The write failed, also with `checkpoint.on_error = "continue"`: a run must not end
    /// successfully without its last checkpoint.
    pub fn finish(&mut self) -> Result<()> {
        self.wait()
    }

    /// Handles the result of writing an output. With `checkpoint.on_error = "continue"` an error is
    /// logged and dropped; repeated failures (a full disk fails in every step) are logged every
    /// five minutes, and their end is logged.
    ///
    /// # Errors
    /// The error itself, with `checkpoint.on_error = "stop"`.
    pub fn handle_write(&mut self, output: Output, result: Result<()>) -> Result<()> {
        let previous = self.failures.iter().position(|f| f.output == output);
        match (result, previous) {
            (Ok(()), None) => Ok(()),
            (Ok(()), Some(i)) => {
                let unlogged = self.failures.remove(i).unlogged;
                tracing::info!(
                    "{output}: writing succeeds again ({unlogged} more failures were not logged)"
                );
                Ok(())
            }
            (Err(e), _) if self.on_error == OnError::Stop => Err(e),
            (Err(_), Some(i)) if self.failures[i].logged.elapsed() < REPORT_INTERVAL => {
                self.failures[i].unlogged += 1;
                Ok(())
            }
            (Err(e), previous) => {
                let more = match previous.map_or(0, |i| self.failures.remove(i).unlogged) {
                    0 => String::new(),
                    n => format!(" ({n} more failures since the last message)"),
                };
                tracing::error!(
                    "{e}\ntraining continues without it (checkpoint.on_error = \"continue\"){more}"
                );
                self.failures.push(Failure { output, logged: Instant::now(), unlogged: 0 });
                Ok(())
            }
        }
    }

    /// Waits for the pending write and returns its result.
    fn wait(&mut self) -> Result<()> {
        let Some(thread) = self.pending.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| {
            Err(Error::Bug(format!(
                "the thread that writes checkpoints to {} panicked",
                self.dir.display()
            )))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_failures_are_counted_until_a_write_succeeds() {
        let config =
            CheckpointConfig { on_error: OnError::Continue, ..CheckpointConfig::default() };
        let mut saver = Saver::new("/none".into(), &config);
        let full = || Err(Error::Inconsistent("disk full".into()));
        for _ in 0..5 {
            saver.handle_write(Output::Metrics, full()).unwrap();
        }
        saver.handle_write(Output::Checkpoint, full()).unwrap();
        assert_eq!(
            saver.failures.iter().map(|f| (f.output, f.unlogged)).collect::<Vec<_>>(),
            [(Output::Metrics, 4), (Output::Checkpoint, 0)]
        );
        saver.handle_write(Output::Metrics, Ok(())).unwrap();
        assert_eq!(saver.failures.len(), 1);
        // A checkpoint that is only started does not end the failures of the ones before.
        let no_snapshot = || Err(Error::Inconsistent("no snapshot".into()));
        assert!(saver.save(no_snapshot, vec![], false).is_err());
        assert_eq!(saver.failures.len(), 1);
        let mut strict = Saver::new("/none".into(), &CheckpointConfig::default());
        assert!(strict.handle_write(Output::Metrics, full()).is_err());
    }
}
