//! Learning rate of every step: steps at epochs, linear warm-up, in f64 and in the reference's order of operations.

/// A step schedule.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// Rate of the first epoch.
    pub lr: f64,
    /// Steps of an epoch.
    pub steps_per_epoch: usize,
    /// Epochs after which the rate drops.
    pub drops: Vec<usize>,
    /// Factor of a drop.
    pub decay: f64,
    /// Steps of the warm-up.
    pub warmup_steps: usize,
    /// Share of the rate at step 0.
    pub warmup_ratio: f64,
}

impl Schedule {
    /// Rate of step `step` (from 0).
    pub fn lr(&self, step: usize) -> f64 {
        let epoch = step / self.steps_per_epoch.max(1);
        let drops = self.drops.iter().filter(|&&d| d <= epoch).count();
        let regular = self.lr * self.decay.powi(drops as i32);
        if step >= self.warmup_steps {
            return regular;
        }
        let k = (1.0 - step as f64 / self.warmup_steps as f64) * (1.0 - self.warmup_ratio);
        regular * (1.0 - k)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_and_drops() {
        let s = Schedule {
            lr: 0.01,
            steps_per_epoch: 7330,
            drops: vec![8, 11],
            decay: 0.1,
            warmup_steps: 1000,
            warmup_ratio: 0.001,
        };
        assert_eq!(s.lr(0), 1.000_000_000_000_001e-5, "the reference's value, to the last bit");
        assert_eq!(s.lr(1000), 0.01);
        assert_eq!(s.lr(8 * 7330 - 1), 0.01);
        assert!((s.lr(8 * 7330) - 0.001).abs() < 1e-18 && (s.lr(11 * 7330) - 0.0001).abs() < 1e-18);
        let tiny = Schedule { steps_per_epoch: 100, drops: vec![2], ..s };
        assert!(tiny.lr(250) < 0.00026, "a drop inside the warm-up is honoured");
    }
}
