//! The scaling model.
//!
//! An all-reduce of S bytes has a latency per message (alpha) and a bandwidth (beta). On n ranks a
//! ring takes 2 (n - 1) alpha + 2 (n - 1)/n S / beta, a pipelined double tree
//! 2 log2(n) alpha + 2 S / beta (Thakur et al. 2005; Sanders et al. 2009). Nodes are reduced
//! internally first, then among each other by the faster of the two. Gradient buckets become ready
//! at a constant rate during the backward pass and are reduced one after another; what lasts longer
//! than the backward pass is exposed. Every rank waits for the slowest of n, whose step times are
//! normally distributed: sigma sqrt(2 ln n) on average.

use serde::Serialize;

use super::inputs::Inputs;

/// Prediction for one number of GPUs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// Number of GPUs.
    pub gpus: usize,
    /// Images per step.
    pub global_batch: usize,
    /// Learning rate by the linear scaling rule.
    pub lr: f64,
    /// Time of the all-reduces of all buckets, in milliseconds.
    pub comm_ms: f64,
    /// Part of it that does not overlap with the backward pass, in milliseconds.
    pub exposed_ms: f64,
    /// Time of waiting for the slowest rank, in milliseconds.
    pub straggler_ms: f64,
    /// Time of a step, in milliseconds.
    pub step_ms: f64,
    /// Images per second.
    pub images_per_s: f64,
    /// Speed-up over a single GPU, divided by the number of GPUs.
    pub efficiency: f64,
    /// Hours of training, for each number of epochs.
    pub hours: Vec<f64>,
}

impl Inputs {
    /// Predicts step time and training hours on `gpus` GPUs.
    pub fn predict(&self, gpus: usize) -> Prediction {
        let backward = self.step_ms * self.backward_share;
        let (mut ready_mib, mut end, mut comm) = (0.0, 0.0f64, 0.0);
        for mib in self.buckets() {
            ready_mib += mib;
            let cost = if gpus > 1 { self.all_reduce_ms(gpus, mib) } else { 0.0 };
            end = end.max(backward * ready_mib / self.gradient_mib) + cost;
            comm += cost;
        }
        let exposed = (end - backward).max(0.0);
        let straggler = self.step_ms * self.scatter * (2.0 * (gpus as f64).ln()).sqrt();
        let step = self.step_ms + exposed + straggler;
        let global_batch = gpus * self.images_per_gpu;
        let steps = self.images.div_ceil(global_batch);
        Prediction {
            gpus,
            global_batch,
            lr: self.lr * global_batch as f64 / self.base_batch as f64,
            comm_ms: comm,
            exposed_ms: exposed,
            straggler_ms: straggler,
            step_ms: step,
            images_per_s: global_batch as f64 / step * 1e3,
            efficiency: self.step_ms / step,
            hours: self.epochs.iter().map(|e| *e as f64 * steps as f64 * step / 3.6e6).collect(),
        }
    }

    /// Milliseconds of one all-reduce of `mib` MiB.
    fn all_reduce_ms(&self, gpus: usize, mib: f64) -> f64 {
        let bytes = mib * f64::from(1 << 20);
        let ring = |ranks: f64, us: f64, gbs: f64| {
            2.0 * (ranks - 1.0) * us / 1e3 + 2.0 * (ranks - 1.0) / ranks * bytes / (gbs * 1e6)
        };
        let tree = |ranks: f64, us: f64, gbs: f64| {
            2.0 * ranks.log2() * us / 1e3 + 2.0 * bytes / (gbs * 1e6)
        };
        let local = gpus.min(self.gpus_per_node) as f64;
        let nodes = gpus.div_ceil(self.gpus_per_node) as f64;
        ring(local, self.node_us, self.node_gbs)
            + ring(nodes, self.link_us, self.link_gbs).min(tree(nodes, self.link_us, self.link_gbs))
    }

    /// Sizes of the gradient buckets in MiB.
    fn buckets(&self) -> Vec<f64> {
        let (mut left, mut out) = (self.gradient_mib, vec![]);
        while left > 1e-9 {
            let size = if out.is_empty() { self.first_bucket_mib } else { self.bucket_mib };
            let size = size.max(0.01).min(left);
            out.push(size);
            left -= size;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::super::inputs::tests::inputs;
    use super::*;

    #[test]
    fn prediction_agrees_with_a_calculation_by_hand() {
        let n = inputs();
        assert_eq!(n.buckets(), [1.0, 25.0, 25.0, 25.0, 25.0]);
        // 25 MiB in a ring of 8: 14 messages of 10 us, and 7/4 of the bytes at 100 GB/s.
        let expected = 14.0 * 0.01 + 1.75 * 25.0 * 1.048_576 / 100.0;
        assert!((n.all_reduce_ms(8, 25.0) - expected).abs() < 1e-9);
        let p = n.predict(8);
        // All buckets but the last overlap with the backward pass.
        assert!((p.exposed_ms - expected).abs() < 1e-9, "{p:?}");
        assert_eq!((p.global_batch, p.lr), (16, 0.01));
        let one = n.predict(1);
        assert_eq!((one.step_ms, one.efficiency, one.comm_ms), (200.0, 1.0, 0.0));
        assert!((one.hours[0] - 12.0 * 58_633.0 * 0.2 / 3600.0).abs() < 1e-9);
    }

    #[test]
    fn speed_up_is_at_most_linear() {
        let n = Inputs { scatter: 0.02, ..inputs() };
        let rows: Vec<Prediction> = (0..13).map(|i| n.predict(1 << i)).collect();
        for pair in rows.windows(2) {
            assert!(
                pair[1].efficiency <= pair[0].efficiency
                    && pair[1].images_per_s > pair[0].images_per_s,
                "{pair:?}"
            );
        }
    }
}
