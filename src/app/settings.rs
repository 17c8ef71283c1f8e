//! What `dw-train` tells about the settings of a run before it starts.

use dw_base::program::print_result;

use crate::Result;
use crate::assign::AssignConfig;
use crate::config::{Config, table};
use crate::model::Detector;
use crate::train::Plan;

/// Prints a table of the settings of a dry run, and the whole configuration, on rank 0.
///
/// # Errors
/// Standard output cannot be written.
pub fn print(config: &Config, plan: &Plan) -> Result<()> {
    if plan.rank == 0 {
        warn(config, plan);
        let (classes, kind) = (plan.inputs.classes, config.train.precision.kind());
        let mut detector = Detector::new(&config.model, classes, kind, plan.inputs.device);
        // Strategies can have parameters of their own, which the table counts.
        let _ = config.assign.build(&mut detector.params, classes as i64);
        let table = table::settings(config, plan, &detector);
        print_result(format_args!("{table}\n\n{}", plan.inputs.toml.trim_end()))?;
    }
    Ok(())
}

/// Logs settings that are valid, but probably not intended.
pub fn warn(config: &Config, plan: &Plan) {
    if let Some(caution) = config.assign.caution(&config.model) {
        tracing::warn!("{caution}");
    }
    if let AssignConfig::Tal(tal) = &config.assign
        && tal.atss_epochs * plan.steps_per_epoch >= plan.total_steps
    {
        tracing::warn!(
            "all {} steps of the run use ATSS's assignment, none task alignment: it begins after \
             assign.atss_epochs = {} epochs of {} steps",
            plan.total_steps,
            tal.atss_epochs,
            plan.steps_per_epoch
        );
    }
    let warmup = config.train.warmup_steps;
    if warmup >= plan.total_steps && warmup > 1 {
        tracing::warn!(
            "the learning rate never reaches its value: train.warmup_steps = {warmup}, and the run \
             has {} steps",
            plan.total_steps
        );
    }
}
