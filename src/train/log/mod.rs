//! What a run records: one [`StepRecord`] a step and one [`EvalRecord`] an evaluation, for any number of
//! [`Sink`]s. Only rank 0 has a log.

pub mod console;
pub mod jsonl;
mod unmatched;

use std::path::Path;

use super::buckets::Cost;
use super::saver::{Output, Saver};
use crate::Result;
use crate::loss::Loss;
use console::Console;
use jsonl::Metrics;
use unmatched::Unmatched;

/// What one step measured, over all ranks.
#[derive(Debug)]
pub struct StepRecord<'a> {
    /// From 1.
    pub step: usize,
    /// From 1.
    pub epoch: usize,
    /// The loss over the global batch, term by term.
    pub loss: &'a Loss,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Seconds that rank 0 waited for its batch.
    pub data_s: f64,
    /// Seconds of the whole step.
    pub step_s: f64,
    /// Seconds of backward.
    pub backward_s: f64,
    /// Images of the global batch.
    pub images: usize,
    /// What communication cost.
    pub cost: Cost,
}

/// The numbers of one evaluation.
#[derive(Debug)]
pub struct EvalRecord {
    /// The step whose weights were evaluated, from 1.
    pub step: usize,
    /// From 1.
    pub epoch: usize,
    /// AP and its kin by name, AP first.
    pub numbers: Vec<(&'static str, f64)>,
    /// Seconds that it took.
    pub eval_s: f64,
}

impl EvalRecord {
    /// A number by its name; not a number where there is none.
    pub fn number(&self, name: &str) -> f64 {
        self.numbers.iter().find(|n| n.0 == name).map_or(f64::NAN, |n| n.1)
    }
}

/// A place that records go to.
pub trait Sink {
    /// Takes a step.
    ///
    /// # Errors
    /// It cannot be written.
    fn step(&mut self, record: &StepRecord) -> Result<()>;

    /// Takes an evaluation.
    ///
    /// # Errors
    /// It cannot be written.
    fn evaluation(&mut self, record: &EvalRecord) -> Result<()>;

    /// Puts what was taken on disk: a checkpoint must not outlive the records of its steps.
    ///
    /// # Errors
    /// The disk refuses.
    fn sync(&self) -> Result<()> {
        Ok(())
    }
}

/// The first of several errors, after all sinks were called.
fn first_error(results: impl Iterator<Item = Result<()>>) -> Result<()> {
    results.fold(Ok(()), Result::and)
}

/// All sinks of a run.
pub struct Log {
    sinks: Vec<Box<dyn Sink>>,
    unmatched: Unmatched,
}

impl Log {
    /// The log of a run in `work_dir` whose first `start` of `total` steps are done, in its start number `attempt`.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub fn open(work_dir: &Path, start: usize, total: usize, attempt: usize) -> Result<Self> {
        let metrics = Metrics::open(&work_dir.join(jsonl::NAME), start, attempt)?;
        let sinks: Vec<Box<dyn Sink>> =
            vec![Box::new(metrics), Box::new(Console::new(start, total))];
        Ok(Self { sinks, unmatched: Unmatched::default() })
    }

    /// Records a step everywhere. What cannot be written is the saver's to judge (`checkpoint.on_error`).
    ///
    /// # Errors
    /// A sink's, where the run is to end with it.
    pub fn step(&mut self, record: &StepRecord, saver: &mut Saver) -> Result<()> {
        saver.tolerate(
            Output::Row,
            first_error(self.sinks.iter_mut().map(|sink| sink.step(record))),
        )?;
        if let Some(warning) = self.unmatched.see(record.loss.without_positive()) {
            tracing::warn!("{warning}");
        }
        Ok(())
    }

    /// Records an evaluation everywhere.
    ///
    /// # Errors
    /// As [`Log::step`].
    pub fn evaluation(&mut self, record: &EvalRecord, saver: &mut Saver) -> Result<()> {
        saver.tolerate(
            Output::Row,
            first_error(self.sinks.iter_mut().map(|sink| sink.evaluation(record))),
        )
    }

    /// Puts everything on disk.
    ///
    /// # Errors
    /// As [`Log::step`].
    pub fn sync(&self, saver: &mut Saver) -> Result<()> {
        saver.tolerate(Output::Row, first_error(self.sinks.iter().map(|sink| sink.sync())))
    }

    /// Logs what only the whole run shows; `steps`: those of this start.
    pub fn close(&self, steps: usize) {
        if self.unmatched.total() > 0 {
            tracing::warn!("{} of {steps} steps had no positive weight", self.unmatched.total());
        }
    }
}
