//! What is due after a step: the end of the run, an evaluation, a checkpoint.

use std::time::Duration;

use super::plan::Plan;

/// Intervals of a run.
#[derive(Debug, Clone, Copy)]
pub struct Intervals {
    total_steps: usize,
    steps_per_epoch: usize,
    /// Epochs between evaluations; 0: none.
    evaluation_epochs: usize,
    /// Steps between checkpoints.
    checkpoint_steps: usize,
    /// Time between checkpoints, on the rank that writes them.
    checkpoint_time: Option<Duration>,
}

/// What is due after a step. All ranks agree on it, except on `by_time`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// The end of the run.
    pub end: bool,
    /// An evaluation.
    pub evaluation: bool,
    /// A checkpoint, by the interval of steps or epochs.
    pub by_steps: bool,
    /// A checkpoint, by time; only on rank 0, which writes it.
    pub by_time: bool,
}

impl Intervals {
    /// The intervals of a plan; `evaluates`: whether the run has a validation split.
    pub fn new(plan: &Plan, evaluates: bool) -> Self {
        let checkpoint = &plan.config.checkpoint;
        let writes = plan.rank == 0 && checkpoint.every_minutes > 0.0;
        Self {
            total_steps: plan.total_steps,
            steps_per_epoch: plan.steps_per_epoch,
            evaluation_epochs: if evaluates { plan.config.eval.every_epochs } else { 0 },
            checkpoint_steps: match checkpoint.every_steps {
                0 => plan.steps_per_epoch,
                steps => steps,
            },
            checkpoint_time: writes
                .then(|| Duration::from_secs_f64(60.0 * checkpoint.every_minutes)),
        }
    }

    /// What is due after `steps_done` steps. `age`: time since the last checkpoint was started or
    /// skipped, or since the start of the run.
    pub fn after(&self, steps_done: usize, age: Duration) -> Due {
        let end = steps_done == self.total_steps;
        let epochs = steps_done / self.steps_per_epoch;
        let epoch_end = steps_done.is_multiple_of(self.steps_per_epoch);
        let every = self.evaluation_epochs;
        Due {
            end,
            evaluation: every > 0
                && steps_done > 0
                && (end || (epoch_end && epochs.is_multiple_of(every))),
            by_steps: steps_done.is_multiple_of(self.checkpoint_steps),
            by_time: self.checkpoint_time.is_some_and(|time| age >= time),
        }
    }
}

impl Due {
    /// Whether all ranks must complete their enqueued steps, because the network is saved or
    /// evaluated.
    pub fn on_all_ranks(self) -> bool {
        self.end || self.evaluation || self.by_steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 10 epochs of 7 steps, evaluated every 3 epochs, saved every 5 steps and 10 minutes.
    fn intervals(rank: usize) -> Intervals {
        Intervals {
            total_steps: 70,
            steps_per_epoch: 7,
            evaluation_epochs: 3,
            checkpoint_steps: 5,
            checkpoint_time: (rank == 0).then_some(Duration::from_mins(10)),
        }
    }

    #[test]
    fn evaluations_and_checkpoints_are_due_at_their_intervals_and_at_the_end() {
        let due = |steps| intervals(0).after(steps, Duration::ZERO);
        let steps = |is: fn(Due) -> bool| (1..=70).filter(|s| is(due(*s))).collect::<Vec<_>>();
        assert_eq!(steps(|d| d.evaluation), [21, 42, 63, 70]);
        assert_eq!(steps(|d| d.by_steps), (1..=14).map(|n| 5 * n).collect::<Vec<_>>());
        assert_eq!(steps(|d| d.end), [70]);
        assert!(!due(0).evaluation, "nothing is evaluated before the first step");
        let none = Intervals { evaluation_epochs: 0, ..intervals(0) };
        assert!((0..=70).all(|s| !none.after(s, Duration::ZERO).evaluation));
    }

    /// Only rank 0 knows the age of the last checkpoint. On any other rank the interval would seem
    /// to have elapsed, and the rank would wait for its device after every step.
    #[test]
    fn the_interval_of_time_concerns_only_the_rank_that_writes() {
        let after = |rank, minutes| intervals(rank).after(3, Duration::from_mins(minutes));
        assert!(!after(0, 9).by_time && after(0, 10).by_time);
        assert!(!after(1, 10).by_time && !after(1, 1000).by_time);
        assert_eq!(after(0, 10).on_all_ranks(), after(1, 10).on_all_ranks());
    }
}
