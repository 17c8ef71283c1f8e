//! Learning rate schedule: step decay by epochs with linear warm-up, computed in f64 in the order
//! of operations of mmcv's `LrUpdaterHook`.

/// A step decay schedule.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// Base learning rate.
    pub lr: f64,
    /// Number of steps of an epoch.
    pub steps_per_epoch: usize,
    /// Numbers of epochs after which the learning rate is multiplied by `decay`.
    pub drops: Vec<usize>,
    /// Factor of each decay.
    pub decay: f64,
    /// Number of warm-up steps.
    pub warmup_steps: usize,
    /// Learning rate of step 0, as a fraction of the regular one.
    pub warmup_ratio: f64,
}

impl Schedule {
    /// Learning rate of step `step` (from 0).
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
    fn linear_warm_up_and_step_decay() {
        let s = Schedule {
            lr: 0.01,
            steps_per_epoch: 7330,
            drops: vec![8, 11],
            decay: 0.1,
            warmup_steps: 1000,
            warmup_ratio: 0.001,
        };
        assert_eq!(s.lr(0), 1.000_000_000_000_001e-5, "bit-exact with mmcv");
        assert_eq!(s.lr(1000), 0.01);
        assert_eq!(s.lr(8 * 7330 - 1), 0.01);
        assert!((s.lr(8 * 7330) - 0.001).abs() < 1e-18 && (s.lr(11 * 7330) - 0.0001).abs() < 1e-18);
        let tiny = Schedule { steps_per_epoch: 100, drops: vec![2], ..s };
        assert!(tiny.lr(250) < 0.00026, "decay applies during the warm-up, too");
    }

    /// Rates of mmcv's hook for 12 and 24 epochs, and for epochs shorter than the warm-up.
    #[test]
    fn rates_are_those_of_mmcv() {
        let text = include_str!("../../tests/golden/data/lr_table.json");
        let tables: Vec<serde_json::Value> = serde_json::from_str(text).unwrap();
        assert_eq!(tables.len(), 3);
        for table in tables {
            let number = |key: &str| table[key].as_f64().unwrap();
            let integer = |v: &serde_json::Value| v.as_u64().unwrap() as usize;
            let s = Schedule {
                lr: number("base_lr"),
                steps_per_epoch: integer(&table["iters_per_epoch"]),
                drops: table["step"].as_array().unwrap().iter().map(integer).collect(),
                decay: number("gamma"),
                warmup_steps: integer(&table["warmup_iters"]),
                warmup_ratio: number("warmup_ratio"),
            };
            for row in table["rows"].as_array().unwrap() {
                let (found, expected) = (s.lr(integer(&row["iter"])), row["lr"].as_f64().unwrap());
                assert!((found - expected).abs() <= 1e-15 * expected, "{row}: {found}");
            }
        }
    }
}
