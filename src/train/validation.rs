//! Evaluations on the validation split during training.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use dw_launch::World;
use dw_metric::MetricConfig;
use serde_json::{Map, Value};

use super::log::{EvalRecord, jsonl};
use super::plan::Plan;
use super::step::Step;
use crate::Result;
use crate::data::Dataset;
use crate::device::peak_mib;
use crate::eval::{self, Truth, bags};

/// The validation split of a run.
pub struct Validation {
    /// The split.
    pub data: Dataset,
    /// Ground truth, read by rank 0 in the first evaluation.
    truth: Option<Arc<Truth>>,
}

impl Validation {
    /// An evaluation on this split; the ground truth is read later.
    pub fn new(data: Dataset) -> Self {
        Self { data, truth: None }
    }

    /// Evaluates the network after `steps_done` steps on all ranks; returns the metrics on rank 0
    /// and `None` on the others. The evaluation is abandoned when `stop` is set.
    ///
    /// # Errors
    /// Bad data, a lost peer, or a stop signal.
    pub fn evaluate(
        &mut self,
        step: &Step,
        plan: &Plan,
        world: &World,
        stop: &AtomicBool,
        steps_done: usize,
    ) -> Result<Option<EvalRecord>> {
        let began = Instant::now();
        let job = eval::Job {
            data: &self.data,
            input: &plan.config.data,
            config: &plan.config.eval,
            device: plan.inputs.device,
            world,
            stop,
        };
        let (detector, metric, is_first) =
            (&step.detector, MetricConfig::default(), self.truth.is_none());
        let report = eval::evaluate(detector, &job, &mut self.truth, &metric)?;
        if let Some(report) = report.as_ref().filter(|_| is_first) {
            report.warn_of_id_zero();
        }
        let bags = match plan.config.eval.bag_images {
            0 => vec![],
            _ => bags::statistics(detector, step.strategy(), &job)?.means(),
        };
        world.barrier("end of evaluation")?;
        let peak_memory_mib = peak_mib(plan.inputs.device)?;
        Ok(report.map(|report| EvalRecord {
            step: steps_done,
            epoch: (steps_done - 1) / plan.steps_per_epoch + 1,
            numbers: [&report.evaluation.summary().named()[..], &bags].concat(),
            eval_s: began.elapsed().as_secs_f64(),
            peak_memory_mib,
        }))
    }
}

/// Whether the `metrics.jsonl` of a work directory has the evaluation after `steps_done` steps.
///
/// # Errors
/// A `metrics.jsonl` that cannot be read.
pub fn is_recorded(work_dir: &Path, steps_done: usize) -> Result<bool> {
    let step = steps_done as u64;
    let matches = |r: &Map<String, Value>| {
        r.contains_key("AP") && r.get("step").and_then(Value::as_u64) == Some(step)
    };
    Ok(jsonl::read(&work_dir.join(jsonl::NAME))?.iter().any(matches))
}
