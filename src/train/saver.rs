//! Writes checkpoints while training goes on: the step loop pays for a copy of the weights, a thread for the disk.

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::checkpoint::{self, Snapshot};
use crate::config::{CheckpointConfig, OnError};
use crate::{Error, Result};

/// Time between two reports of the same failure.
const REPEAT: Duration = Duration::from_mins(5);

/// The writer of one rank.
pub struct Saver {
    dir: PathBuf,
    keep: usize,
    on_error: OnError,
    writing: Option<JoinHandle<Result<()>>>,
    /// When the last checkpoint was begun.
    began: Instant,
    /// Failures that were tolerated: when which was reported last, and how many times since.
    failures: Vec<(Output, Instant, usize)>,
}

/// What could not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// A checkpoint.
    Checkpoint,
    /// A row of `metrics.jsonl`.
    Row,
}

impl Saver {
    /// Nothing is written yet. `dir`: the folder of checkpoints.
    pub fn new(dir: PathBuf, config: &CheckpointConfig) -> Self {
        let (keep, on_error) = (config.keep, config.on_error);
        Self { dir, keep, on_error, writing: None, began: Instant::now(), failures: vec![] }
    }

    /// Time since the last checkpoint was begun, or since the start.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// Begins to write. A write that is still under way is waited for, unless this one may be left out: then it is, where the run
    /// is to go on without. `best`: the step whose checkpoint is kept.
    ///
    /// # Errors
    /// The write before failed, and the run is to end then.
    pub fn save(
        &mut self,
        snapshot: impl FnOnce() -> Result<Snapshot>,
        best: Option<usize>,
        may_skip: bool,
    ) -> Result<()> {
        if may_skip
            && self.on_error == OnError::Continue
            && self.writing.as_ref().is_some_and(|w| !w.is_finished())
        {
            tracing::warn!("the checkpoint before is still being written: this one is left out");
            return Ok(());
        }
        self.began = Instant::now();
        let before = self.wait();
        self.tolerate(Output::Checkpoint, before)?;
        let (dir, keep, snapshot) = (self.dir.clone(), self.keep, snapshot()?);
        let write = move || {
            let (began, step) = (Instant::now(), snapshot.step());
            let path = checkpoint::save(&dir, &snapshot)?;
            checkpoint::prune(&dir, step, keep, best)?;
            tracing::info!(
                "checkpoint {} ({:.1} s)",
                path.display(),
                began.elapsed().as_secs_f64()
            );
            Ok(())
        };
        let thread = std::thread::Builder::new().name("dw-checkpoint".into()).spawn(write);
        self.writing = Some(
            thread
                .map_err(|e| crate::device::threads::refused("a thread that writes the checkpoint", &e))?,
        );
        Ok(())
    }

    /// Takes note of a write that has ended. Returns at once.
    ///
    /// # Errors
    /// As [`Saver::save`].
    pub fn look(&mut self) -> Result<()> {
        if self.writing.as_ref().is_some_and(JoinHandle::is_finished) {
            let ended = self.wait();
            return self.tolerate(Output::Checkpoint, ended);
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

    /// Logs a failure to write results and drops it, where the run is to go on without them. A failure
    /// that repeats (a full disk fails every step) is logged once in five minutes, and when it is over.
    ///
    /// # Errors
    /// The same error, where the run is to end with it.
    pub fn tolerate(&mut self, output: Output, written: Result<()>) -> Result<()> {
        let known = self.failures.iter().position(|f| f.0 == output);
        match (written, known) {
            (Ok(()), None) => Ok(()),
            (Ok(()), Some(i)) => {
                let (_, _, count) = self.failures.remove(i);
                tracing::info!("{output:?}: written again ({count} more failures were not logged)");
                Ok(())
            }
            (Err(e), _) if self.on_error == OnError::Stop => Err(e),
            (Err(_), Some(i)) if self.failures[i].1.elapsed() < REPEAT => {
                self.failures[i].2 += 1;
                Ok(())
            }
            (Err(e), known) => {
                let count = known.map_or(0, |i| self.failures.remove(i).2);
                let more = if count > 0 {
                    format!(" ({count} more since the last report)")
                } else {
                    String::new()
                };
                tracing::error!(
                    "{e}\ntraining goes on without it (checkpoint.on_error = \"continue\"){more}"
                );
                self.failures.push((output, Instant::now(), 0));
                Ok(())
            }
        }
    }

    fn wait(&mut self) -> Result<()> {
        let Some(thread) = self.writing.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| {
            Err(Error::Data(format!(
                "the thread that writes to {} ended early",
                self.dir.display()
            )))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_that_repeats_is_counted_and_ends_with_the_first_success() {
        let config =
            CheckpointConfig { on_error: OnError::Continue, ..CheckpointConfig::default() };
        let mut saver = Saver::new("/none".into(), &config);
        let full = || Err(Error::Data("disk full".into()));
        for _ in 0..5 {
            saver.tolerate(Output::Row, full()).unwrap();
        }
        saver.tolerate(Output::Checkpoint, full()).unwrap();
        assert_eq!(
            saver.failures.iter().map(|f| (f.0, f.2)).collect::<Vec<_>>(),
            [(Output::Row, 4), (Output::Checkpoint, 0)]
        );
        saver.tolerate(Output::Row, Ok(())).unwrap();
        assert_eq!(saver.failures.len(), 1);
        let mut strict = Saver::new("/none".into(), &CheckpointConfig::default());
        assert!(strict.tolerate(Output::Row, full()).is_err());
    }
}
