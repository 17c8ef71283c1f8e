//! Records of a run: one [`StepRecord`] per step and one [`EvalRecord`] per evaluation, written to
//! any number of [`Sink`]s. Only rank 0 has a log.

pub mod console;
pub mod jsonl;
pub mod tensorboard;
mod unmatched;

use std::path::Path;

use super::buckets::Cost;
use super::plan::Plan;
use super::saver::{Output, Saver};
use crate::Result;
use crate::loss::Loss;
use console::Console;
use jsonl::Metrics;
use tensorboard::TensorBoard;
use unmatched::Unmatched;

/// The measurements of one step.
#[derive(Debug)]
pub struct StepRecord<'a> {
    /// Step, from 1.
    pub step: usize,
    /// Epoch, from 1.
    pub epoch: usize,
    /// The loss over the global batch, with its terms.
    pub loss: &'a Loss,
    /// L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Seconds that rank 0 waited for its batch.
    pub data_s: f64,
    /// Seconds of the whole step, including `data_s`.
    pub step_s: f64,
    /// Seconds of backward, including its part of the all-reduce.
    pub backward_s: f64,
    /// Number of images of the global batch.
    pub images: usize,
    /// The cost of communication.
    pub cost: Cost,
}

impl StepRecord<'_> {
    /// All numbers that are written to files, except step and epoch, with their names.
    fn numbers(&self) -> Vec<(&'static str, f64)> {
        let mut numbers = vec![("loss", self.loss.total())];
        numbers.extend(&self.loss.terms);
        numbers.extend([
            ("grad_norm", self.grad_norm),
            ("lr", self.lr),
            ("data_s", self.data_s),
            ("step_s", self.step_s),
            ("images_per_s", self.images as f64 / self.step_s),
            ("backward_s", self.backward_s),
            ("comm_exposed_s", self.cost.exposed_s),
        ]);
        numbers.extend(self.cost.hidden.map(|share| ("comm_hidden", share)));
        numbers
    }
}

/// The metrics of one evaluation.
#[derive(Debug)]
pub struct EvalRecord {
    /// The step whose weights were evaluated, from 1.
    pub step: usize,
    /// Epoch, from 1.
    pub epoch: usize,
    /// COCO metrics by name, AP first, followed by the requested statistics of weights
    /// ([`BagStatistics::means`](crate::assign::figures::bags::BagStatistics::means)).
    pub numbers: Vec<(&'static str, f64)>,
    /// Seconds of the evaluation.
    pub eval_s: f64,
    /// Peak memory of rank 0 until now, MiB.
    pub peak_memory_mib: f64,
}

impl EvalRecord {
    /// A metric by its name; NaN if there is none.
    pub fn number(&self, name: &str) -> f64 {
        self.numbers.iter().find(|n| n.0 == name).map_or(f64::NAN, |n| n.1)
    }
}

/// A destination of records.
pub trait Sink {
    /// Writes the record of a step.
    ///
    /// # Errors
    /// The record cannot be written.
    fn step(&mut self, record: &StepRecord) -> Result<()>;

    /// Writes the record of an evaluation.
    ///
    /// # Errors
    /// The record cannot be written.
    fn evaluation(&mut self, record: &EvalRecord) -> Result<()>;

    /// Forces written records to disk. Called before a checkpoint is written: after a crash, no
    /// checkpoint may exist without the records of its steps.
    ///
    /// # Errors
    /// The records cannot be written.
    fn sync(&self) -> Result<()> {
        Ok(())
    }
}

/// The first error of all results; evaluates all of them.
fn first_error(results: impl Iterator<Item = Result<()>>) -> Result<()> {
    results.fold(Ok(()), Result::and)
}

/// All sinks of a run.
pub struct Log {
    sinks: Vec<Box<dyn Sink>>,
    unmatched: Unmatched,
}

impl Log {
    /// The log of attempt `attempt` (from 1) of a run of `plan` in `work_dir`, of which the first
    /// `start` steps are completed.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub fn open(work_dir: &Path, start: usize, plan: &Plan, attempt: usize) -> Result<Self> {
        let metrics = Metrics::open(&work_dir.join(jsonl::NAME), start, attempt)?;
        // Without rows all earlier events are those of another run.
        let first = if metrics.is_empty() { 0 } else { start + 1 };
        let console = Console::new(start, plan.total_steps);
        let mut sinks: Vec<Box<dyn Sink>> = vec![Box::new(metrics), Box::new(console)];
        if plan.config.train.tensorboard {
            sinks.push(Box::new(TensorBoard::create(work_dir, first, attempt)?));
        }
        Ok(Self { sinks, unmatched: Unmatched::default() })
    }

    /// Writes the record of a step to all sinks, and warns about steps without positive weights.
    ///
    /// # Errors
    /// A sink failed and `checkpoint.on_error = "stop"`.
    pub fn step(&mut self, record: &StepRecord, saver: &mut Saver) -> Result<()> {
        saver.handle_write(
            Output::Metrics,
            first_error(self.sinks.iter_mut().map(|sink| sink.step(record))),
        )?;
        if let Some(warning) = self.unmatched.update(record.loss.without_positive()) {
            tracing::warn!("{warning}");
        }
        Ok(())
    }

    /// Writes the record of an evaluation to all sinks.
    ///
    /// # Errors
    /// As [`Log::step`].
    pub fn evaluation(&mut self, record: &EvalRecord, saver: &mut Saver) -> Result<()> {
        saver.handle_write(
            Output::Metrics,
            first_error(self.sinks.iter_mut().map(|sink| sink.evaluation(record))),
        )
    }

    /// Forces the records to disk.
    ///
    /// # Errors
    /// As [`Log::step`].
    pub fn sync(&self, saver: &mut Saver) -> Result<()> {
        match first_error(self.sinks.iter().map(|sink| sink.sync())) {
            // Not a sign that writing succeeds again: a full disk fails only in the next write.
            Ok(()) => Ok(()),
            failed => saver.handle_write(Output::Metrics, failed),
        }
    }

    /// Logs a summary at the end of a run; `steps` is the number of steps of this attempt.
    pub fn close(&self, steps: usize) {
        if self.unmatched.total() > 0 {
            tracing::warn!("{} of {steps} steps had no positive weight", self.unmatched.total());
        }
    }
}
