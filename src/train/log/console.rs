//! Progress messages in the log.

use std::time::{Duration, Instant};

use super::{EvalRecord, Sink, StepRecord};
use crate::Result;

/// Shortest time between two messages.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Logs a message every few seconds: the mean loss and speed since the last one, and the remaining
/// time. There is no progress bar, because the output of mpirun is not a terminal.
pub(super) struct Console {
    began: Instant,
    last_message: Option<Instant>,
    /// Number of steps that were completed before this attempt.
    start: usize,
    /// Number of steps of the run.
    total: usize,
    /// Steps since the last message.
    window: Window,
}

/// Sums over consecutive steps.
#[derive(Default)]
struct Window {
    steps: usize,
    images: usize,
    step_s: f64,
    loss: f64,
    /// Sum of each term of the loss, in the order of the terms.
    terms: Vec<f64>,
}

impl Window {
    fn add(&mut self, r: &StepRecord) {
        self.steps += 1;
        self.images += r.images;
        self.step_s += r.step_s;
        self.loss += r.loss.total();
        self.terms.resize(r.loss.terms.len(), 0.0);
        for (sum, (_, value)) in self.terms.iter_mut().zip(&r.loss.terms) {
            *sum += value;
        }
    }

    fn mean(&self, sum: f64) -> f64 {
        sum / self.steps as f64
    }
}

impl Console {
    /// For a run with `total` steps, of which the first `start` are completed.
    pub(super) fn new(start: usize, total: usize) -> Self {
        let (began, window) = (Instant::now(), Window::default());
        Self { began, last_message: None, start, total, window }
    }
}

impl Sink for Console {
    fn step(&mut self, r: &StepRecord) -> Result<()> {
        self.window.add(r);
        if r.step < self.total && self.last_message.is_some_and(|t| t.elapsed() < LOG_INTERVAL) {
            return Ok(());
        }
        self.last_message = Some(Instant::now());
        let window = std::mem::take(&mut self.window);
        // Includes evaluations and checkpoints, unlike the speed.
        let each = self.began.elapsed().as_secs_f64() / (r.step - self.start) as f64;
        let remaining = Duration::from_secs_f64(each * (self.total - r.step) as f64);
        let terms = r.loss.terms.iter().zip(&window.terms);
        let terms: Vec<String> = terms
            .map(|((name, _), sum)| {
                format!("{} {:.3}", name.trim_start_matches("loss_"), window.mean(*sum))
            })
            .collect();
        tracing::info!(
            "step {}/{} epoch {} loss {:.3} ({}) lr {:.2e} {:.1} images/s ETA {:#}",
            r.step,
            self.total,
            r.epoch,
            window.mean(window.loss),
            terms.join(", "),
            r.lr,
            window.images as f64 / window.step_s.max(1e-9),
            indicatif::HumanDuration(remaining)
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
