//! Evaluations of a run on its validation split.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use dw_launch::World;
use dw_metric::Params;
use serde_json::{Map, Value};

use super::log::{EvalRecord, jsonl};
use crate::data::Dataset;
use crate::Result;
use crate::eval::{self, Truth};
use crate::model::Detector;
use crate::train::plan::Plan;

/// The validation split of a run.
pub struct Validation {
    data: Dataset,
    /// Its boxes, read by rank 0 for the first evaluation.
    truth: Option<Arc<Truth>>,
}

impl Validation {
    /// Nothing is read yet.
    pub fn new(data: Dataset) -> Self {
        Self { data, truth: None }
    }

    /// Whether an evaluation is due after `done` steps.
    pub fn is_due(plan: &Plan, done: usize) -> bool {
        let every = plan.config.eval.every_epochs;
        let epochs = done / plan.steps_per_epoch;
        let epoch_end = done.is_multiple_of(plan.steps_per_epoch);
        every > 0
            && done > 0
            && (done == plan.total_steps || (epoch_end && epochs.is_multiple_of(every)))
    }

    /// Evaluates the network as it is after `done` steps, on all ranks; rank 0 gets the numbers.
    ///
    /// # Errors
    /// Bad data, a lost peer, preemption.
    pub fn evaluate(
        &mut self,
        detector: &Detector,
        plan: &Plan,
        world: &World,
        stop: &AtomicBool,
        done: usize,
    ) -> Result<Option<EvalRecord>> {
        let began = Instant::now();
        let job =
            eval::Job { data: &self.data, config: &plan.config, device: plan.device, world, stop };
        let report = eval::evaluate(detector, &job, &mut self.truth, &Params::default())?;
        world.barrier("evaluation's end")?;
        Ok(report.map(|report| EvalRecord {
            step: done,
            epoch: (done - 1) / plan.steps_per_epoch + 1,
            numbers: report.evaluation.summary().named().to_vec(),
            eval_s: began.elapsed().as_secs_f64(),
        }))
    }
}

/// Whether the evaluation after `done` steps is recorded in a work directory.
///
/// # Errors
/// A `metrics.jsonl` that cannot be read.
pub fn is_recorded(work_dir: &Path, done: usize) -> Result<bool> {
    let is_it =
        |r: &Map<String, Value>| r.contains_key("AP") && r["step"].as_u64() == Some(done as u64);
    Ok(jsonl::read(&work_dir.join(jsonl::NAME))?.iter().any(is_it))
}
