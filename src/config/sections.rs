//! The sections of a configuration and their defaults: the paper's training of FCOS R-50.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::assign::AssignConfig;
use crate::device::Precision;
use crate::model::ModelConfig;

/// Everything that can be configured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The network.
    pub model: ModelConfig,
    /// Images.
    pub data: DataConfig,
    /// Label assignment.
    pub assign: AssignConfig,
    /// Optimisation.
    pub train: TrainConfig,
    /// Inference and the metric.
    pub eval: EvalConfig,
    /// Checkpoints.
    pub checkpoint: CheckpointConfig,
}

impl Config {
    /// Settles what follows from other settings: random weights freeze no stage of the backbone.
    pub fn resolve(&mut self) {
        if self.model.init == "random" {
            self.model.frozen_stages = -1;
        }
    }
}

/// `[data]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Folder of shards.
    pub shards: PathBuf,
    /// Split to train on; empty: `train2017`, or the only split whose name begins with `train`.
    pub train_split: String,
    /// Split to evaluate on; empty: `val2017`, or the only split whose name begins with `val`.
    pub val_split: String,
    /// Shorter side of the network input, pixels.
    pub short_side: u32,
    /// Most pixels of the longer side.
    pub long_side: u32,
    /// `[low, high]`: draw the shorter side of training images from this range; empty: always `short_side`.
    pub multi_scale: Vec<u32>,
    /// Probability of a horizontal flip.
    pub flip: f64,
    /// Use only the first N images of a split (0: all).
    pub limit: usize,
    /// Do not train on images without boxes or with a side under 32 pixels.
    pub filter_empty: bool,
    /// Consecutive positions that share a padded shape.
    pub group: usize,
    /// Bring images of one orientation together in those groups: less padding.
    pub aspect_grouping: bool,
    /// Decode JPEGs at a part of their size where the network's input is smaller: less work, other pixels than `false`
    /// (which gives those of OpenCV). No effect on packs of the `zstd` codec.
    pub scaled_decode: bool,
    /// Parts of the data that nodes keep to (1: every node reads all): less to read and cache for each of many nodes. The
    /// order depends on this number, not on how many nodes there are.
    pub canonical_nodes: usize,
    /// Decoding threads of a rank (0: the node's cores shared among its ranks).
    pub workers: usize,
    /// Most memory of a rank for batches that are prepared ahead, MiB (page-locked for a GPU); two batches are always allowed.
    pub prefetch_mib: usize,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            shards: "coco/shards".into(),
            train_split: String::new(),
            val_split: String::new(),
            short_side: 800,
            long_side: 1333,
            multi_scale: vec![],
            flip: 0.5,
            limit: 0,
            filter_empty: true,
            group: 2,
            aspect_grouping: false,
            scaled_decode: false,
            canonical_nodes: 1,
            workers: 0,
            prefetch_mib: 4096,
        }
    }
}

/// How the learning rate follows the global batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrScaling {
    /// In proportion to global batch / `base_batch`.
    Linear,
    /// As configured.
    None,
}

/// `[train]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Passes over the data.
    pub epochs: usize,
    /// Stop after this many steps (0: whole schedule).
    pub max_steps: usize,
    /// Images of a rank in one step.
    pub images_per_rank: usize,
    /// Seed of weights, order and augmentation.
    pub seed: u64,
    /// Learning rate at `base_batch` images.
    pub lr: f64,
    /// Global batch that `lr` is meant for.
    pub base_batch: usize,
    /// How `lr` follows the global batch.
    pub lr_scaling: LrScaling,
    /// Epochs after which the rate is multiplied by `lr_decay`.
    pub lr_steps: Vec<usize>,
    /// Factor at each of `lr_steps`.
    pub lr_decay: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: usize,
    /// Share of the rate at the first step of the warm-up.
    pub warmup_ratio: f64,
    /// SGD momentum.
    pub momentum: f64,
    /// Weight decay (not on norm layers).
    pub weight_decay: f64,
    /// Largest norm of the gradient (0: no clipping).
    pub clip_norm: f64,
    /// CPU threads of a rank (0: the node's cores shared among its ranks).
    pub threads: usize,
    /// Kind of weights, activations and gradients, and rounding of f32 on a GPU. A run's files say what `auto` stood for.
    pub precision: Precision,
    /// Deterministic algorithms on a GPU wherever libtorch has one, which is slower (a CPU run is deterministic anyway).
    pub deterministic: bool,
    /// How gradients travel between ranks.
    pub grad_compression: GradCompression,
    /// MiB of gradients that are sent together while backward goes on.
    pub bucket_mib: f64,
    /// MiB of the first of them: small, so that sending starts early.
    pub first_bucket_mib: f64,
    /// Seconds that a rank waits for the others in one collective of a step before it ends the job.
    pub step_deadline_s: f64,
    /// The same at the start, in evaluations and at the end.
    pub start_deadline_s: f64,
}

/// How gradients travel between ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GradCompression {
    /// As they are.
    #[default]
    None,
    /// As bf16: half the bytes (a quarter of f64's), 8 significant bits in every partial sum.
    Bf16,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 12,
            max_steps: 0,
            images_per_rank: 2,
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
        }
    }
}

/// `[eval]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// Evaluate after every N epochs, and at the end (0: never).
    pub every_epochs: usize,
    /// Smallest score (exclusive).
    pub score_threshold: f64,
    /// Most (point, class) pairs of a level.
    pub per_level: usize,
    /// NMS removes boxes that overlap a better one by more than this IoU.
    pub nms_iou: f64,
    /// Most detections of an image.
    pub per_image: usize,
    /// Images that go through the network together. With more than 1 an image's padding, and so its numbers a little, depend
    /// on its neighbours.
    pub batch: usize,
    /// Detect on the mirrored image, too, and let NMS choose among both.
    pub flip: bool,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            every_epochs: 1,
            score_threshold: 0.05,
            per_level: 1000,
            nms_iou: 0.6,
            per_image: 100,
            batch: 1,
            flip: false,
        }
    }
}

/// `[checkpoint]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Every N steps (0: after every epoch).
    pub every_steps: usize,
    /// Besides, when this many minutes have passed since the last one (0: not by time).
    pub every_minutes: f64,
    /// Newest checkpoints to keep, beside the best.
    pub keep: usize,
    /// What a checkpoint that cannot be written means for the run (the last one, and one asked for by a signal, always end it
    /// with an error).
    pub on_error: OnError,
}

/// What to do when a checkpoint cannot be written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// End with the error: nothing more would be safe.
    #[default]
    Stop,
    /// Tell it and train on; the next checkpoint may succeed.
    Continue,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every_steps: 0, every_minutes: 10.0, keep: 2, on_error: OnError::Stop }
    }
}
