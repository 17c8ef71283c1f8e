//! Progress lines on standard error.

use std::time::{Duration, Instant};

use super::{EvalRecord, Sink, StepRecord};
use crate::Result;

/// Time between progress lines.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// A line with ETA every few seconds; mpirun's output is no terminal, so there is no bar to redraw.
pub(super) struct Console {
    began: Instant,
    logged: Option<Instant>,
    start: usize,
    total: usize,
}

impl Console {
    /// For a run whose first `start` of `total` steps are done.
    pub(super) fn new(start: usize, total: usize) -> Self {
        Self { began: Instant::now(), logged: None, start, total }
    }
}

impl Sink for Console {
    fn step(&mut self, r: &StepRecord) -> Result<()> {
        if r.step < self.total && self.logged.is_some_and(|t| t.elapsed() < LOG_EVERY) {
            return Ok(());
        }
        self.logged = Some(Instant::now());
        let done = (r.step - self.start) as f64;
        let pace = self.began.elapsed().as_secs_f64() / done;
        let left = (self.total - r.step) as f64;
        let eta = indicatif::HumanDuration(Duration::from_secs_f64(pace * left));
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
            r.images as f64 / pace
        );
        Ok(())
    }

    fn evaluation(&mut self, r: &EvalRecord) -> Result<()> {
        let number = |name| r.number(name);
        let (ap, ap50, ap75) = (number("AP"), number("AP50"), number("AP75"));
        tracing::info!(
            "epoch {}: AP {ap:.3}, AP50 {ap50:.3}, AP75 {ap75:.3} ({:.0} s)",
            r.epoch,
            r.eval_s
        );
        Ok(())
    }
}
