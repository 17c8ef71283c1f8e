//! A run's numbers, resolved from configuration, world and data: what is printed at the start and saved with the run.

use dw_launch::World;
use tch::Device;

use crate::config::{Config, LrScaling};
use crate::data::sampler::steps_per_epoch;
use crate::error::{Error, Result};
use crate::model::Detector;
use crate::train::schedule::Schedule;

/// Steps that the loader may be ahead, at most, with up to three threads.
const AHEAD: usize = 4;

/// How far batches are prepared ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefetch {
    /// Steps.
    pub batches: usize,
    /// Most MiB of one batch of this rank.
    pub batch_mib: usize,
}

impl Prefetch {
    /// As many steps as `data.prefetch_mib` has room for, at least 2 and at most one more than there are threads.
    fn new(config: &Config, images: usize, workers: usize, device: Device) -> Self {
        // Landscapes and portraits may meet in a batch: then both of its sides are as long as the longer side.
        let side = config.data.long_side.next_multiple_of(32) as usize;
        let bytes = images * 3 * side * side * size_of::<f32>();
        // libtorch's allocator of page-locked memory rounds up.
        let bytes = if device.is_cuda() { bytes.next_power_of_two() } else { bytes };
        let batch_mib = bytes.div_ceil(1 << 20);
        let room = config.data.prefetch_mib / batch_mib;
        Self { batches: room.min(AHEAD.max(workers + 1)).max(2), batch_mib }
    }
}

/// Resolved settings of a training run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Name of the configuration.
    pub name: String,
    /// As configured.
    pub config: Config,
    /// Classes.
    pub classes: usize,
    /// This rank's device.
    pub device: Device,
    /// This rank.
    pub rank: usize,
    /// Ranks.
    pub world: usize,
    /// Images of all ranks in one step.
    pub global_batch: usize,
    /// Images of the training split in use.
    pub train_images: usize,
    /// Images of the validation split in use.
    pub val_images: usize,
    /// Steps of an epoch.
    pub steps_per_epoch: usize,
    /// Steps of the run.
    pub total_steps: usize,
    /// Learning rate of every step.
    pub schedule: Schedule,
    /// CPU threads of this rank.
    pub threads: usize,
    /// Threads of this rank that prepare batches.
    pub workers: usize,
    /// How far they are ahead.
    pub prefetch: Prefetch,
    /// Name of what carries the collectives.
    pub collectives: String,
}

impl Plan {
    /// Resolves a configuration for a global batch (images), which the ranks share evenly.
    ///
    /// # Errors
    /// Parts of the data (`data.canonical_nodes`) that do not fit the batch or the number of images.
    #[expect(clippy::too_many_arguments, reason = "one value for each thing a run depends on")]
    pub fn new(
        name: &str,
        config: Config,
        classes: usize,
        images: (usize, usize),
        device: Device,
        world: &World,
        threads: usize,
        global_batch: usize,
    ) -> Result<Self> {
        let ranks = world.size();
        let nodes = config.data.canonical_nodes;
        if !global_batch.is_multiple_of(nodes) || images.0 < nodes {
            return Err(Error::Usage(format!(
                "`data.canonical_nodes` = {nodes}: expected a number that divides the global batch ({global_batch}) and is at most the number of images ({})",
                images.0
            )));
        }
        let steps = steps_per_epoch(images.0, global_batch);
        let all = steps * config.train.epochs;
        let total_steps = if config.train.max_steps == 0 { all } else { config.train.max_steps };
        let t = &config.train;
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
        let workers = if config.data.workers == 0 { threads } else { config.data.workers };
        Ok(Self {
            workers,
            prefetch: Prefetch::new(&config, global_batch / ranks, workers, device),
            name: name.to_owned(),
            classes,
            device,
            rank: world.rank(),
            world: ranks,
            global_batch,
            train_images: images.0,
            val_images: images.1,
            steps_per_epoch: steps,
            total_steps,
            schedule,
            threads,
            collectives: world.name(),
            config,
        })
    }

    /// The settings as a table for people.
    pub fn table(&self, detector: &Detector) -> String {
        let c = &self.config;
        let (trained, all) = detector.params.counts();
        let (height, width) =
            (c.data.short_side.next_multiple_of(32), c.data.long_side.next_multiple_of(32));
        let cost = detector.cost(height.into(), width.into()) as f64 / 1e9;
        let (m, d, t) = (&c.model, &c.data, &c.train);
        let deformable = match (&m.dcn_stages[..], m.dcn_last_conv) {
            ([], false) => "nothing deformable".to_owned(),
            ([], true) => "DCNv2 in the head".to_owned(),
            (stages, head) => {
                format!("DCNv2 in C{stages:?}{}", if head { " and the head" } else { "" })
            }
        };
        let scales = if d.multi_scale.is_empty() {
            d.short_side.to_string()
        } else {
            format!("{}..{}", d.multi_scale[0], d.multi_scale[1])
        };
        let rows = [
            ("configuration", self.name.clone()),
            (
                "network",
                format!(
                    "{} x {} + FPN + FCOS head, {} channels, norm {:?}, refinement {}, {}",
                    m.backbone.name(),
                    m.width,
                    m.channels,
                    m.norm,
                    m.refine,
                    deformable
                ),
            ),
            ("parameters", format!("{trained} trained of {all}")),
            (
                "cost",
                format!(
                    "{cost:.1} GFLOPs (multiply-adds of the convolutions) for one image of {height} x {width}"
                ),
            ),
            ("start", format!("{}, {} frozen stages", m.init, m.frozen_stages.max(0))),
            (
                "data",
                format!(
                    "{}: {} ({} images), {} ({} images)",
                    d.shards.display(),
                    d.train_split,
                    self.train_images,
                    d.val_split,
                    self.val_images
                ),
            ),
            ("classes", self.classes.to_string()),
            (
                "input",
                format!("short side {scales}, long side <= {}, flip {}", d.long_side, d.flip),
            ),
            ("assignment", c.assign.summary()),
            (
                "ranks",
                format!(
                    "{} on {:?}, {} threads each, collectives: {}",
                    self.world, self.device, self.threads, self.collectives
                ),
            ),
            (
                "precision",
                format!(
                    "{}{}",
                    t.precision.name(),
                    if t.deterministic { ", deterministic algorithms" } else { "" }
                ),
            ),
            (
                "prefetch",
                format!(
                    "{} batches of at most {} MiB{}; {} of {} threads can work at once",
                    self.prefetch.batches,
                    self.prefetch.batch_mib,
                    if self.device.is_cuda() { " of page-locked memory" } else { "" },
                    self.workers.min(self.prefetch.batches),
                    self.workers
                ),
            ),
            (
                "global batch",
                format!(
                    "{} = {} images x {} ranks",
                    self.global_batch,
                    self.global_batch / self.world,
                    self.world
                ),
            ),
            (
                "learning rate",
                format!(
                    "{} ({} at {} images, scaling {:?}), x{} after epochs {:?}, warm-up {} steps",
                    self.schedule.lr,
                    t.lr,
                    t.base_batch,
                    t.lr_scaling,
                    t.lr_decay,
                    t.lr_steps,
                    t.warmup_steps
                ),
            ),
            (
                "schedule",
                format!(
                    "{} steps = {:.2} epochs of {} steps",
                    self.total_steps,
                    self.total_steps as f64 / self.steps_per_epoch as f64,
                    self.steps_per_epoch
                ),
            ),
            ("seed", t.seed.to_string()),
        ];
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        for (k, v) in rows {
            table.add_row([k.to_owned(), v]);
        }
        table.to_string()
    }
}
