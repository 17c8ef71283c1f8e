//! `[train]` and `[checkpoint]`: optimisation, communication and checkpoints.

use serde::{Deserialize, Serialize};

use crate::device::Precision;

/// How the learning rate depends on the global batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrScaling {
    /// Proportional to global batch / `base_batch`.
    Linear,
    /// The configured rate, whatever the batch.
    None,
}

/// `[train]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Number of passes over the training split.
    pub epochs: usize,
    /// Number of steps of the run; overrides `epochs` (0: computed from `epochs`).
    pub max_steps: usize,
    /// Images per rank and forward pass.
    pub images_per_rank: usize,
    /// Number of forward and backward passes of a step, whose gradients are added: the global batch
    /// is images_per_rank x ranks x accumulate.
    pub accumulate: usize,
    /// Seed of the initial weights, the order of the images and the augmentation.
    pub seed: u64,
    /// Learning rate at `base_batch` images.
    pub lr: f64,
    /// Global batch that `lr` is meant for.
    pub base_batch: usize,
    /// How the learning rate depends on the global batch.
    pub lr_scaling: LrScaling,
    /// Epochs after which the rate is multiplied by `lr_decay`.
    pub lr_steps: Vec<usize>,
    /// Factor applied at each of `lr_steps`.
    pub lr_decay: f64,
    /// Number of steps of linear warm-up.
    pub warmup_steps: usize,
    /// Learning rate of the first step, as a fraction of the rate without warm-up.
    pub warmup_ratio: f64,
    /// SGD momentum.
    pub momentum: f64,
    /// Weight decay (not applied to norm layers).
    pub weight_decay: f64,
    /// Maximum norm of the gradient; a larger gradient is scaled down to it (0: no clipping).
    pub clip_norm: f64,
    /// CPU threads of a rank (0: `OMP_NUM_THREADS`, else the node's cores divided by its ranks).
    pub threads: usize,
    /// Precision of activations, and how a GPU rounds f32; parameters and gradients are f32 (f64
    /// in `f64`). A run's files store the value that `auto` was resolved to.
    pub precision: Precision,
    /// Use deterministic algorithms on a GPU wherever libtorch has one. Slower; a run on the CPU is
    /// deterministic in any case.
    pub deterministic: bool,
    /// Encoding of gradients in the all-reduce.
    pub grad_compression: GradCompression,
    /// Size of a gradient bucket, MiB; buckets are all-reduced while backward runs.
    pub bucket_mib: f64,
    /// Size of the first bucket, MiB: small, so that communication starts early.
    pub first_bucket_mib: f64,
    /// Deadline of a collective within a step, seconds; after it the rank ends the job.
    pub step_deadline_s: f64,
    /// Deadline of a collective at the start, in evaluations and at the end, seconds.
    pub start_deadline_s: f64,
    /// Also write the metrics to a TensorBoard event file in `WORK_DIR/tensorboard`.
    pub tensorboard: bool,
}

impl TrainConfig {
    /// Images of all ranks in one step.
    pub fn global_batch(&self, num_ranks: usize) -> usize {
        self.images_per_rank * self.accumulate * num_ranks
    }
}

/// Encoding of gradients in the all-reduce.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GradCompression {
    /// In their own precision.
    #[default]
    None,
    /// As bf16: half the bytes of f32; partial sums have 8 significant bits.
    Bf16,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 12,
            max_steps: 0,
            images_per_rank: 2,
            accumulate: 1,
            seed: 0,
            lr: 0.01,
            base_batch: 16,
            lr_scaling: LrScaling::Linear,
            lr_steps: vec![8, 11],
            lr_decay: 0.1,
            warmup_steps: 1000,
            warmup_ratio: 0.001,
            momentum: 0.9,
            weight_decay: 1e-4,
            clip_norm: 0.0,
            threads: 0,
            precision: Precision::Auto,
            deterministic: false,
            grad_compression: GradCompression::None,
            bucket_mib: 25.0,
            first_bucket_mib: 1.0,
            step_deadline_s: 300.0,
            start_deadline_s: 1800.0,
            tensorboard: false,
        }
    }
}

/// `[checkpoint]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Save every N steps (0: after every epoch).
    pub every_steps: usize,
    /// Also save when this many minutes have passed since the last checkpoint (0: never).
    pub every_minutes: f64,
    /// Number of checkpoints to keep: the newest ones, and the best in addition.
    pub keep: usize,
    /// What to do when a checkpoint cannot be written. The last one, and one requested by a signal,
    /// always end the run with an error.
    pub on_error: OnError,
}

/// What to do when a checkpoint cannot be written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// End the run with the error.
    #[default]
    Stop,
    /// Log the error and continue; the next checkpoint may succeed.
    Continue,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every_steps: 0, every_minutes: 10.0, keep: 2, on_error: OnError::Stop }
    }
}
