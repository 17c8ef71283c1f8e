//! The settings of a run, resolved from configuration, communicator and data.

use dw_launch::World;
use tch::Device;

use super::config::{CheckpointConfig, LrScaling, TrainConfig};
use super::schedule::Schedule;
use crate::data::DataConfig;
use crate::data::sampler::steps_per_epoch;
use crate::eval::EvalConfig;
use crate::model::NormKind;
use crate::{Error, Result};

/// Maximum number of batches prepared ahead with up to three loader threads.
const MAX_AHEAD: usize = 4;

/// What the training loop reads of a configuration.
#[derive(Debug, Clone)]
pub struct RunConfig {
    /// `[data]`
    pub data: DataConfig,
    /// `[train]`
    pub train: TrainConfig,
    /// `[eval]`
    pub eval: EvalConfig,
    /// `[checkpoint]`
    pub checkpoint: CheckpointConfig,
    /// `model.norm`
    pub norm: NormKind,
}

/// How far batches are prepared ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefetch {
    /// Number of batches.
    pub batches: usize,
    /// Largest size of one batch of this rank, MiB.
    pub batch_mib: usize,
}

impl Prefetch {
    /// As many batches as fit into `data.prefetch_mib`, but at least 2, and at most the largest of
    /// [`MAX_AHEAD`], the number of loader threads plus one, and two steps' `parts`. `images`:
    /// images per batch.
    fn new(data: &DataConfig, images: usize, parts: usize, workers: usize, device: Device) -> Self {
        // A batch can hold a landscape and a portrait image: both padded sides are then long.
        let side = data.long_side.next_multiple_of(32) as usize;
        let bytes = images * 3 * side * side;
        // libtorch's allocator of page-locked memory rounds up to a power of two.
        let bytes = if device.is_cuda() { bytes.next_power_of_two() } else { bytes };
        let batch_mib = bytes.div_ceil(1 << 20);
        let room = data.prefetch_mib / batch_mib;
        Self { batches: room.min(MAX_AHEAD.max(workers + 1).max(2 * parts)).max(2), batch_mib }
    }
}

/// What a [`Plan`] is resolved from, besides the configuration.
#[derive(Debug, Clone)]
pub struct RunInputs {
    /// Name of the configuration.
    pub name: String,
    /// The whole resolved configuration as TOML, which checkpoints store.
    pub toml: String,
    /// Number of classes.
    pub classes: usize,
    /// Number of images used from the training split.
    pub train_images: usize,
    /// Number of images used from the validation split.
    pub val_images: usize,
    /// This rank's device.
    pub device: Device,
    /// CPU threads of this rank.
    pub threads: usize,
    /// Images of all ranks in one step.
    pub global_batch: usize,
}

/// Resolved settings of a training run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What the run was resolved from.
    pub inputs: RunInputs,
    /// Sections of the configuration.
    pub config: RunConfig,
    /// This rank.
    pub rank: usize,
    /// Number of ranks.
    pub world_size: usize,
    /// Number of forward and backward passes into which a rank divides its images of a step.
    pub parts: usize,
    /// Steps of an epoch.
    pub steps_per_epoch: usize,
    /// Steps of the run.
    pub total_steps: usize,
    /// Learning rate of every step.
    pub schedule: Schedule,
    /// Threads of this rank that prepare batches.
    pub workers: usize,
    /// How far batches are prepared ahead.
    pub prefetch: Prefetch,
    /// Name of the backend of the collectives.
    pub collectives: String,
}

impl Plan {
    /// Resolves a run. The ranks share the global batch evenly.
    ///
    /// # Errors
    /// `data.canonical_nodes` that does not divide the global batch or exceeds the images.
    pub fn new(inputs: RunInputs, config: RunConfig, world: &World) -> Result<Self> {
        let RunInputs { train_images, global_batch, .. } = inputs;
        let nodes = config.data.canonical_nodes;
        if !global_batch.is_multiple_of(nodes) || train_images < nodes {
            return Err(Error::Usage(format!(
                "`data.canonical_nodes` = {nodes}: expected a divisor of the global batch \
                 ({global_batch}) that is at most the number of images ({train_images})"
            )));
        }
        let t = &config.train;
        let images = global_batch / world.size();
        let parts = num_parts(images, &config);
        let steps = steps_per_epoch(train_images, global_batch);
        let total_steps = if t.max_steps == 0 { steps * t.epochs } else { t.max_steps };
        let lr = match t.lr_scaling {
            LrScaling::Linear => t.lr * global_batch as f64 / t.base_batch as f64,
            LrScaling::None => t.lr,
        };
        let schedule = Schedule {
            lr,
            steps_per_epoch: steps,
            drops: t.lr_steps.clone(),
            decay: t.lr_decay,
            warmup_steps: t.warmup_steps,
            warmup_ratio: t.warmup_ratio,
        };
        let workers = if config.data.workers == 0 { inputs.threads } else { config.data.workers };
        Ok(Self {
            prefetch: Prefetch::new(&config.data, images / parts, parts, workers, inputs.device),
            rank: world.rank(),
            world_size: world.size(),
            parts,
            steps_per_epoch: steps,
            total_steps,
            schedule,
            workers,
            collectives: world.name(),
            config,
            inputs,
        })
    }

    /// Images of all ranks in one step.
    pub fn global_batch(&self) -> usize {
        self.inputs.global_batch
    }

    /// Images of a forward pass.
    pub fn images_per_pass(&self) -> usize {
        self.inputs.global_batch / self.world_size / self.parts
    }
}

/// The number of equal passes for a rank's `images` of a step: the smallest with which a pass has
/// at most `train.images_per_rank`. In a new run that is `train.accumulate`; a run that is resumed
/// on another number of ranks keeps its global batch, so that a rank has more or fewer images.
fn num_parts(images: usize, config: &RunConfig) -> usize {
    if config.norm == NormKind::Bn {
        // Its statistics are those of a pass, so that passes do not have the numbers of ranks.
        return 1;
    }
    let fits = |n: &usize| images.is_multiple_of(*n) && images / n <= config.train.images_per_rank;
    (1..=images).find(fits).unwrap_or(images)
}
