//! Progress messages in the log.

use std::time::{Duration, Instant};

use super::{EvalRecord, Sink, StepRecord};
use crate::Result;

/// Shortest time between two messages.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Logs a message with the remaining time every few seconds. There is no progress bar, because the
/// output of mpirun is not a terminal.
pub(super) struct Console {
    began: Instant,
    last_message: Option<Instant>,
    /// Number of steps that were completed before this attempt.
    start: usize,
    /// Number of steps of the run.
    total: usize,
}

impl Console {
    /// For a run with `total` steps, of which the first `start` are completed.
    pub(super) fn new(start: usize, total: usize) -> Self {
        Self { began: Instant::now(), last_message: None, start, total }
    }
}

impl Sink for Console {
    fn step(&mut self, r: &StepRecord) -> Result<()> {
        if r.step < self.total && self.last_message.is_some_and(|t| t.elapsed() < LOG_INTERVAL) {
            return Ok(());
        }
        self.last_message = Some(Instant::now());
        let steps_done = (r.step - self.start) as f64;
        let step_s = self.began.elapsed().as_secs_f64() / steps_done;
        let remaining = (self.total - r.step) as f64;
        let eta = indicatif::HumanDuration(Duration::from_secs_f64(step_s * remaining));
        let terms = r.loss.terms.iter();
        let terms: Vec<String> =
            terms.map(|(n, v)| format!("{} {v:.3}", n.trim_start_matches("loss_"))).collect();
        tracing::info!(
            "step {}/{} epoch {} loss {:.3} ({}) lr {:.2e} {:.1} images/s ETA {eta:#}",
            r.step,
            self.total,
            r.epoch,
            r.loss.total(),
            terms.join(", "),
            r.lr,
            r.images as f64 / step_s
        );
        Ok(())
    }

    fn evaluation(&mut self, r: &EvalRecord) -> Result<()> {
        let (ap, ap50, ap75) = (r.number("AP"), r.number("AP50"), r.number("AP75"));
        tracing::info!(
            "epoch {}: AP {ap:.3}, AP50 {ap50:.3}, AP75 {ap75:.3} ({:.0} s)",
            r.epoch,
            r.eval_s
        );
        let bags = r.numbers.iter().filter(|(name, _)| name.starts_with("bag_"));
        let bags: Vec<String> = bags.map(|(name, value)| format!("{name} {value:.3}")).collect();
        if !bags.is_empty() {
            tracing::info!("epoch {}: {}", r.epoch, bags.join(", "));
        }
        Ok(())
    }
}
