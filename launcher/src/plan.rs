//! What more GPUs would give: step time, exposed communication and hours from measured numbers.
//!
//! Model. An all-reduce of S bytes costs start-up times (alpha) and bytes over bandwidth (beta): a ring of n takes
//! 2 (n - 1) alpha + 2 (n - 1)/n S beta, a pipelined double tree 2 log2(n) alpha + 2 S beta (Thakur et al. 2005; Sanders et
//! al. 2009). Nodes are reduced inside first, then among each other by the better of the two. Buckets become ready evenly
//! through backward, are reduced one after another, and what lasts longer than backward is exposed. The ranks wait for the
//! slowest of n whose step times scatter normally: sigma sqrt(2 ln n).

use clap::Args;
use serde::Serialize;

use crate::collectives::{Error, Result};

/// Measured numbers and the machine.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct Numbers {
    /// GPUs: a number, a list, or a range that doubles, as 8..4096
    #[arg(long, value_parser = gpus, default_value = "8..4096")]
    pub gpus: Gpus,
    /// GPUs of a node
    #[arg(long, default_value_t = 8)]
    pub gpus_per_node: usize,
    /// Milliseconds of a step on one GPU alone (`step_s` of metrics.jsonl)
    #[arg(long)]
    pub step_ms: f64,
    /// Share of the step that is backward (`backward_s` / `step_s`)
    #[arg(long, default_value_t = 0.55)]
    pub backward_share: f64,
    /// Images of a GPU in one step
    #[arg(long, default_value_t = 2)]
    pub images_per_gpu: usize,
    /// Images of an epoch (COCO's 117,266 that have boxes)
    #[arg(long, default_value_t = 117_266)]
    pub images: usize,
    /// Epochs
    #[arg(long, value_delimiter = ',', default_values_t = [12, 24])]
    pub epochs: Vec<usize>,
    /// MiB of gradients (4 bytes a trained parameter, 2 with bf16 compression)
    #[arg(long, default_value_t = 121.6)]
    pub gradient_mib: f64,
    /// MiB of a bucket
    #[arg(long, default_value_t = 25.0)]
    pub bucket_mib: f64,
    /// MiB of the first bucket
    #[arg(long, default_value_t = 1.0)]
    pub first_bucket_mib: f64,
    /// GB/s a GPU sends within a node
    #[arg(long, default_value_t = 300.0)]
    pub node_gbs: f64,
    /// Microseconds of one message within a node
    #[arg(long, default_value_t = 5.0)]
    pub node_us: f64,
    /// GB/s a node sends to others
    #[arg(long, default_value_t = 25.0)]
    pub link_gbs: f64,
    /// Microseconds of one message between nodes
    #[arg(long, default_value_t = 15.0)]
    pub link_us: f64,
    /// Scatter of a rank's step time (standard deviation over mean)
    #[arg(long, default_value_t = 0.02)]
    pub scatter: f64,
    /// Learning rate at the base batch
    #[arg(long, default_value_t = 0.01)]
    pub lr: f64,
    /// Global batch that the rate is meant for
    #[arg(long, default_value_t = 16)]
    pub base_batch: usize,
}

/// Largest value of an option.
const LARGEST: f64 = 1e9;
/// Most buckets of a step.
const MOST_BUCKETS: f64 = 1e5;

/// Numbers of GPUs to plan for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpus(pub Vec<usize>);

fn gpus(text: &str) -> std::result::Result<Gpus, String> {
    let number = |t: &str| {
        t.trim()
            .parse::<usize>()
            .ok()
            .filter(|n| (1..=LARGEST as usize).contains(n))
            .ok_or(format!("`{t}`: expected a number of GPUs"))
    };
    if let Some((from, to)) = text.split_once("..") {
        let (from, to) = (number(from)?, number(to)?);
        if from > to {
            return Err(format!("`{text}`: expected FROM..TO with the smaller number first"));
        }
        return Ok(Gpus(
            std::iter::successors(Some(from), |n| n.checked_mul(2))
                .take_while(|n| *n <= to)
                .collect(),
        ));
    }
    text.split(',').map(number).collect::<std::result::Result<_, _>>().map(Gpus)
}

/// What the model says for one number of GPUs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// GPUs.
    pub gpus: usize,
    /// Images of a step.
    pub global_batch: usize,
    /// Learning rate by the linear rule.
    pub lr: f64,
    /// Milliseconds that all buckets take.
    pub comm_ms: f64,
    /// Milliseconds of that which backward does not hide.
    pub exposed_ms: f64,
    /// Milliseconds of waiting for the slowest rank.
    pub straggler_ms: f64,
    /// Milliseconds of a step.
    pub step_ms: f64,
    /// Images a second.
    pub images_per_s: f64,
    /// Share of a perfect speed-up.
    pub efficiency: f64,
    /// Hours for each of the asked numbers of epochs.
    pub hours: Vec<f64>,
}

impl Numbers {
    /// Refuses what has no meaning.
    ///
    /// # Errors
    /// Which option is out of range.
    pub fn check(&self) -> Result<()> {
        let positive = [
            ("--step-ms", self.step_ms),
            ("--gradient-mib", self.gradient_mib),
            ("--bucket-mib", self.bucket_mib),
            ("--first-bucket-mib", self.first_bucket_mib),
            ("--node-gbs", self.node_gbs),
            ("--link-gbs", self.link_gbs),
            ("--gpus-per-node", self.gpus_per_node as f64),
            ("--images-per-gpu", self.images_per_gpu as f64),
            ("--images", self.images as f64),
            ("--base-batch", self.base_batch as f64),
        ];
        for (name, value) in positive {
            if !(value > 0.0 && value <= LARGEST) {
                let expected = format!("expected a number above 0 and up to {LARGEST:e}");
                return Err(Error::Failed(format!("{name} {value}: {expected}")));
            }
        }
        let others = [
            ("--node-us", self.node_us),
            ("--link-us", self.link_us),
            ("--scatter", self.scatter),
            ("--lr", self.lr),
        ];
        for (name, value) in others {
            if !(0.0..=LARGEST).contains(&value) {
                return Err(Error::Failed(format!("{name} {value}: expected 0 to {LARGEST:e}")));
            }
        }
        if self.gradient_mib / self.bucket_mib > MOST_BUCKETS {
            return Err(Error::Failed(format!(
                "--gradient-mib {} in buckets of --bucket-mib {}: expected at most {MOST_BUCKETS}",
                self.gradient_mib, self.bucket_mib
            )));
        }
        if !(0.0..=1.0).contains(&self.backward_share) {
            return Err(Error::Failed(format!(
                "--backward-share {}: expected 0 to 1",
                self.backward_share
            )));
        }
        Ok(())
    }
}

/// Milliseconds of one all-reduce of `mib`.
pub fn all_reduce_ms(n: &Numbers, gpus: usize, mib: f64) -> f64 {
    let bytes = mib * f64::from(1 << 20);
    let ring = |ranks: f64, us: f64, gbs: f64| {
        2.0 * (ranks - 1.0) * us / 1e3 + 2.0 * (ranks - 1.0) / ranks * bytes / (gbs * 1e6)
    };
    let tree =
        |ranks: f64, us: f64, gbs: f64| 2.0 * ranks.log2() * us / 1e3 + 2.0 * bytes / (gbs * 1e6);
    let inside = gpus.min(n.gpus_per_node) as f64;
    let nodes = gpus.div_ceil(n.gpus_per_node) as f64;
    ring(inside, n.node_us, n.node_gbs)
        + ring(nodes, n.link_us, n.link_gbs).min(tree(nodes, n.link_us, n.link_gbs))
}

/// MiB of each bucket.
pub fn buckets(n: &Numbers) -> Vec<f64> {
    let (mut left, mut out) = (n.gradient_mib, vec![]);
    while left > 1e-9 {
        let size =
            if out.is_empty() { n.first_bucket_mib } else { n.bucket_mib }.max(0.01).min(left);
        out.push(size);
        left -= size;
    }
    out
}

/// The model's answer for one number of GPUs.
pub fn row(n: &Numbers, gpus: usize) -> Row {
    let backward = n.step_ms * n.backward_share;
    let (mut ready_mib, mut end, mut comm) = (0.0, 0.0f64, 0.0);
    for mib in buckets(n) {
        ready_mib += mib;
        let cost = if gpus > 1 { all_reduce_ms(n, gpus, mib) } else { 0.0 };
        end = end.max(backward * ready_mib / n.gradient_mib) + cost;
        comm += cost;
    }
    let exposed = (end - backward).max(0.0);
    let straggler = n.step_ms * n.scatter * (2.0 * (gpus as f64).ln()).sqrt();
    let step = n.step_ms + exposed + straggler;
    let global_batch = gpus * n.images_per_gpu;
    let steps = n.images.div_ceil(global_batch);
    Row {
        gpus,
        global_batch,
        lr: n.lr * global_batch as f64 / n.base_batch as f64,
        comm_ms: comm,
        exposed_ms: exposed,
        straggler_ms: straggler,
        step_ms: step,
        images_per_s: global_batch as f64 / step * 1e3,
        efficiency: n.step_ms / step,
        hours: n.epochs.iter().map(|e| *e as f64 * steps as f64 * step / 3.6e6).collect(),
    }
}

/// The rows as a table for people.
pub fn table(n: &Numbers) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    let hours = n.epochs.iter().map(|e| format!("h, {e} epochs"));
    let fixed = [
        "GPUs",
        "batch",
        "lr",
        "comm ms",
        "exposed",
        "straggler",
        "step ms",
        "images/s",
        "efficiency",
    ]
    .map(String::from);
    table.set_header(fixed.into_iter().chain(hours));
    for r in n.gpus.0.iter().map(|g| row(n, *g)) {
        let mut cells =
            vec![r.gpus.to_string(), r.global_batch.to_string(), format!("{:.4}", r.lr)];
        cells.extend(
            [r.comm_ms, r.exposed_ms, r.straggler_ms, r.step_ms, r.images_per_s]
                .map(|v| format!("{v:.1}")),
        );
        cells.push(format!("{:.1} %", 100.0 * r.efficiency));
        cells.extend(r.hours.iter().map(|h| format!("{h:.2}")));
        table.add_row(cells);
    }
    let note = "lr by the linear rule (train.lr_scaling = \"linear\"). Batches far above 16 have no published AP: expect to lengthen train.warmup_steps and to lose some.";
    format!("{table}\n{note}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers() -> Numbers {
        Numbers {
            gpus: Gpus(vec![]),
            gpus_per_node: 8,
            step_ms: 200.0,
            backward_share: 0.5,
            images_per_gpu: 2,
            images: 117_266,
            epochs: vec![12],
            gradient_mib: 101.0,
            bucket_mib: 25.0,
            first_bucket_mib: 1.0,
            node_gbs: 100.0,
            node_us: 10.0,
            link_gbs: 10.0,
            link_us: 20.0,
            scatter: 0.0,
            lr: 0.01,
            base_batch: 16,
        }
    }

    #[test]
    fn by_hand() {
        let n = numbers();
        assert_eq!(buckets(&n), [1.0, 25.0, 25.0, 25.0, 25.0]);
        // 25 MiB in a ring of 8: 14 messages of 10 us and 7/4 of the bytes over 100 GB/s.
        let expected = 14.0 * 0.01 + 1.75 * 25.0 * 1.048_576 / 100.0;
        assert!((all_reduce_ms(&n, 8, 25.0) - expected).abs() < 1e-9);
        let r = row(&n, 8);
        // All but the last bucket hide behind backward.
        assert!((r.exposed_ms - expected).abs() < 1e-9, "{r:?}");
        assert_eq!((r.global_batch, r.lr), (16, 0.01));
        let one = row(&n, 1);
        assert_eq!((one.step_ms, one.efficiency, one.comm_ms), (200.0, 1.0, 0.0));
        assert!((one.hours[0] - 12.0 * 58_633.0 * 0.2 / 3600.0).abs() < 1e-9);
    }

    #[test]
    fn numbers_that_mean_nothing() {
        assert!(numbers().check().is_ok());
        for n in [
            Numbers { step_ms: f64::NAN, ..numbers() },
            Numbers { step_ms: f64::INFINITY, ..numbers() },
            Numbers { scatter: f64::NAN, ..numbers() },
            Numbers { node_us: -1.0, ..numbers() },
            Numbers { images_per_gpu: usize::MAX, ..numbers() },
            // As many buckets would fill the memory.
            Numbers { gradient_mib: 1e8, bucket_mib: 1e-6, ..numbers() },
        ] {
            assert!(n.check().is_err(), "{n:?}");
        }
        let most = usize::MAX;
        assert!(gpus(&format!("1..{most}")).is_err() && gpus(&most.to_string()).is_err());
    }

    #[test]
    fn more_gpus_are_never_faster_by_more_than_their_number() {
        let n = Numbers { scatter: 0.02, ..numbers() };
        let rows: Vec<Row> = gpus("1..4096").unwrap().0.iter().map(|g| row(&n, *g)).collect();
        assert_eq!(rows.len(), 13);
        for pair in rows.windows(2) {
            assert!(
                pair[1].efficiency <= pair[0].efficiency
                    && pair[1].images_per_s > pair[0].images_per_s,
                "{pair:?}"
            );
        }
        assert!(
            gpus("8,24").unwrap() == Gpus(vec![8, 24])
                && gpus("0").is_err()
                && gpus("16..8").is_err()
                && gpus("x..8").is_err()
        );
        assert!(table(&Numbers { gpus: Gpus(vec![8]), ..n }).contains("12 epochs"));
    }
}
