//! What a run says on standard error as it goes.

use std::time::{Duration, Instant};

use crate::loss::Loss;

/// Time between progress lines.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// A line with ETA now and then; mpirun's output is no terminal, so there is no bar to redraw.
pub struct Progress {
    began: Instant,
    logged: Option<Instant>,
    start: usize,
    total: usize,
}

impl Progress {
    /// A run that begins at step `start`.
    pub fn new(start: usize, total: usize) -> Self {
        Self { began: Instant::now(), logged: None, start, total }
    }

    /// Tells a step, if it is time for a line. `images`: of all ranks in one step.
    pub fn log(&mut self, step: usize, epoch: usize, loss: &Loss, lr: f64, images: usize) {
        if step + 1 < self.total && self.logged.is_some_and(|t| t.elapsed() < LOG_EVERY) {
            return;
        }
        self.logged = Some(Instant::now());
        let done = (step + 1 - self.start) as f64;
        let pace = self.began.elapsed().as_secs_f64() / done;
        let eta = indicatif::HumanDuration(Duration::from_secs_f64(pace * (self.total - step - 1) as f64));
        let terms: Vec<String> = loss.terms.iter().map(|(n, v)| format!("{} {v:.3}", n.trim_start_matches("loss_"))).collect();
        tracing::info!(
            "step {}/{} epoch {} loss {:.3} ({}) lr {:.2e} {:.1} images/s ETA {eta:#}",
            step + 1,
            self.total,
            epoch + 1,
            loss.total(),
            terms.join(", "),
            lr,
            images as f64 / pace
        );
    }
}
