//! Inputs of the prediction: options of `dw-launch plan`.

use clap::Args;
use dw_base::{Error, Result};

/// Measured numbers and properties of the machine.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct Inputs {
    /// GPUs: a number, a list, or a range in powers of two, such as 8..4096
    #[arg(long, value_parser = parse_gpus, default_value = "8..4096")]
    pub gpus: Gpus,
    /// GPUs per node
    #[arg(long, default_value_t = 8)]
    pub gpus_per_node: usize,
    /// Milliseconds of a step on a single GPU (`step_s` in metrics.jsonl)
    #[arg(long)]
    pub step_ms: f64,
    /// Fraction of the step that is the backward pass (`backward_s` / `step_s`)
    #[arg(long, default_value_t = 0.55)]
    pub backward_share: f64,
    /// Images per GPU and step
    #[arg(long, default_value_t = 2)]
    pub images_per_gpu: usize,
    /// Images per epoch (117,266 images of COCO have boxes)
    #[arg(long, default_value_t = 117_266)]
    pub images: usize,
    /// Numbers of epochs
    #[arg(long, value_delimiter = ',', default_values_t = [12, 24])]
    pub epochs: Vec<usize>,
    /// MiB of gradients (4 bytes per trained parameter, 2 with bf16 compression)
    #[arg(long, default_value_t = 121.6)]
    pub gradient_mib: f64,
    /// MiB of a gradient bucket
    #[arg(long, default_value_t = 25.0)]
    pub bucket_mib: f64,
    /// MiB of the first gradient bucket
    #[arg(long, default_value_t = 1.0)]
    pub first_bucket_mib: f64,
    /// Bandwidth of a GPU within a node, in GB/s
    #[arg(long, default_value_t = 300.0)]
    pub node_gbs: f64,
    /// Latency of a message within a node, in microseconds
    #[arg(long, default_value_t = 5.0)]
    pub node_us: f64,
    /// Bandwidth of a node to other nodes, in GB/s
    #[arg(long, default_value_t = 25.0)]
    pub link_gbs: f64,
    /// Latency of a message between nodes, in microseconds
    #[arg(long, default_value_t = 15.0)]
    pub link_us: f64,
    /// Relative standard deviation of a rank's step time
    #[arg(long, default_value_t = 0.02)]
    pub scatter: f64,
    /// Learning rate at the base batch
    #[arg(long, default_value_t = 0.01)]
    pub lr: f64,
    /// Global batch size that --lr applies to
    #[arg(long, default_value_t = 16)]
    pub base_batch: usize,
}

/// Largest value of an option.
const LARGEST: f64 = 1e9;
/// Largest number of buckets of a step.
const MOST_BUCKETS: f64 = 1e5;

/// Numbers of GPUs to predict for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpus(pub Vec<usize>);

/// Parses a number, a list `8,24` or a range `8..4096`, in which each number is twice the last.
fn parse_gpus(text: &str) -> std::result::Result<Gpus, String> {
    let number = |t: &str| {
        let valid = |n: &usize| (1..=LARGEST as usize).contains(n);
        t.trim().parse().ok().filter(valid).ok_or(format!("`{t}`: expected a number of GPUs"))
    };
    let Some((from, to)) = text.split_once("..") else {
        return text.split(',').map(number).collect::<std::result::Result<_, _>>().map(Gpus);
    };
    let (from, to) = (number(from)?, number(to)?);
    if from > to {
        return Err(format!("`{text}`: expected FROM..TO with the smaller number first"));
    }
    let doubled = std::iter::successors(Some(from), |n| n.checked_mul(2));
    Ok(Gpus(doubled.take_while(|n| *n <= to).collect()))
}

impl Inputs {
    /// Checks the ranges of all options.
    ///
    /// # Errors
    /// The option that is out of range.
    pub fn check(&self) -> Result<()> {
        for (name, value) in [
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
        ] {
            let expected = format!("a number above 0 and up to {LARGEST:e}");
            require(value > 0.0 && value <= LARGEST, name, value, &expected)?;
        }
        for (name, value, largest) in [
            ("--node-us", self.node_us, LARGEST),
            ("--link-us", self.link_us, LARGEST),
            ("--scatter", self.scatter, LARGEST),
            ("--lr", self.lr, LARGEST),
            ("--backward-share", self.backward_share, 1.0),
        ] {
            let valid = (0.0..=largest).contains(&value);
            require(valid, name, value, &format!("a number from 0 to {largest:e}"))?;
        }
        let buckets = self.gradient_mib / self.bucket_mib;
        let expected = format!("at most {MOST_BUCKETS} buckets of --bucket-mib");
        require(buckets <= MOST_BUCKETS, "--gradient-mib", self.gradient_mib, &expected)
    }
}

fn require(valid: bool, name: &str, value: f64, expected: &str) -> Result<()> {
    if valid { Ok(()) } else { Err(Error::Usage(format!("{name} {value}: expected {expected}"))) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn inputs() -> Inputs {
        Inputs {
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
    fn values_out_of_range_are_usage_errors() {
        assert!(inputs().check().is_ok());
        for (bad, option) in [
            (Inputs { step_ms: f64::NAN, ..inputs() }, "--step-ms"),
            (Inputs { step_ms: f64::INFINITY, ..inputs() }, "--step-ms"),
            (Inputs { scatter: f64::NAN, ..inputs() }, "--scatter"),
            (Inputs { node_us: -1.0, ..inputs() }, "--node-us"),
            (Inputs { images_per_gpu: usize::MAX, ..inputs() }, "--images-per-gpu"),
            (Inputs { backward_share: 1.5, ..inputs() }, "--backward-share"),
            // The list of buckets would exhaust the memory.
            (Inputs { gradient_mib: 1e8, bucket_mib: 1e-6, ..inputs() }, "--gradient-mib"),
        ] {
            let e = bad.check().unwrap_err();
            assert_eq!(e.exit_code(), 2);
            assert!(e.to_string().contains(option), "{e}");
        }
    }

    #[test]
    fn numbers_of_gpus_are_parsed() {
        assert_eq!(parse_gpus("8,24").unwrap(), Gpus(vec![8, 24]));
        assert_eq!(parse_gpus("8..40").unwrap(), Gpus(vec![8, 16, 32]));
        let most = usize::MAX.to_string();
        for bad in ["0", "16..8", "x..8", &most, &format!("1..{most}")] {
            assert!(parse_gpus(bad).is_err(), "{bad}");
        }
    }
}
