//! `dw-train`: from the command line to a running loop. Resolves data, device, plan, network,
//! weights or checkpoint, and the work directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dw_launch::{Topology, World, restart};
use dw_shards::coco::Category;
use tch::Device;

pub use super::resume::Resume;
use super::{check_same_on_all_ranks, resume, settings};
use crate::config::{self, Config, table};
use crate::data::Dataset;
use crate::data::dataset::{choose_split, same_categories};
use crate::device::join::join;
use crate::device::{self, Choice, threads};
use crate::model::Detector;
use crate::train::checkpoint::{self, Checkpoint};
use crate::train::lock::Lock;
use crate::train::log::jsonl;
use crate::train::plan::RunInputs;
use crate::train::run::Run;
use crate::train::step::Step;
use crate::train::validation::Validation;
use crate::train::{Plan, init, work_dir};
use crate::{Error, Result};

/// Arguments of `dw-train`.
#[derive(Debug, clap::Args)]
pub struct TrainArgs {
    /// Built-in name or path of a TOML file
    #[arg(default_value = "dw_r50_fpn_1x")]
    pub config: String,
    /// Set a configuration key, for example train.lr=0.02 (repeatable)
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    pub set: Vec<String>,
    /// Folder of shards (`data.shards`)
    #[arg(long, value_name = "OUT")]
    pub data: Option<PathBuf>,
    /// Folder of metrics and checkpoints [default: work/NAME]
    #[arg(long, value_name = "DIR")]
    pub work_dir: Option<PathBuf>,
    /// Checkpoint to resume from: auto (the newest of the work directory), none, or a path
    #[arg(long, default_value = "auto", value_name = "auto|none|PATH")]
    pub resume: Resume,
    /// Resume although settings that determine the result differ from the checkpoint's
    #[arg(long)]
    pub resume_with_changes: bool,
    /// Starting weights (`model.init`): imagenet, random, or a file
    #[arg(long, value_name = "imagenet|random|FILE")]
    pub init: Option<String>,
    /// Device
    #[arg(long, value_enum, default_value = "auto")]
    pub device: Choice,
    /// Print the resolved settings and exit
    #[arg(long)]
    pub dry_run: bool,
}

impl TrainArgs {
    /// Name of the configuration, of a file its name without the ending.
    fn name(&self) -> String {
        if config::BUILT_IN.iter().any(|(name, _)| *name == self.config) {
            return self.config.clone();
        }
        let stem = Path::new(&self.config).file_stem();
        stem.map_or_else(|| "run".into(), |s| s.to_string_lossy().into_owned())
    }

    /// The configuration with all options applied.
    fn configuration(&self) -> Result<Config> {
        let mut config = config::load(&self.config, &self.set)?;
        if let Some(data) = &self.data {
            config.data.shards.clone_from(data);
        }
        if let Some(init) = &self.init {
            config.model.init.clone_from(init);
        }
        config.resolve();
        Ok(config)
    }

    fn work_dir(&self) -> PathBuf {
        self.work_dir.clone().unwrap_or_else(|| Path::new("work").join(self.name()))
    }
}

/// Prepares a run and trains it to its end.
///
/// # Errors
/// Any mistake in the arguments, bad data, a lost peer, preemption.
pub fn train(args: &TrainArgs, topology: &Topology, world: &mut Option<Arc<World>>) -> Result<()> {
    let mut config = args.configuration()?;
    let num_threads = num_threads(&config, topology, args.dry_run)?;
    if args.dry_run && !config.data.shards.exists() {
        return dry_run_without_data(config, args, num_threads, topology, world);
    }
    let data = Data::open(&mut config)?;
    let work_dir = args.work_dir();
    let device = select_device(args, &mut config, num_threads, topology)?;
    let world = join(device, world)?;
    world.set_deadline(Duration::from_secs_f64(config.train.start_deadline_s));
    // Held until this function returns, which is the end of the run.
    let _lock = lock(&work_dir, args.dry_run, &world)?;
    let (from, global_batch) = starting_point(args, &mut config, &data, &work_dir, &world)?;
    if from.is_none() {
        init::check(&config.model.init)?;
    }
    let start = from.as_ref().map_or(0, |c| c.state.step);
    check_agreement(&config, &data, start, &world)?;
    let inputs = RunInputs {
        name: args.name(),
        toml: config.to_toml()?,
        classes: data.train.categories().len(),
        train_images: data.train.len(),
        val_images: data.val.as_ref().map_or(0, Dataset::len),
        device,
        threads: num_threads,
        global_batch,
    };
    let plan = Plan::new(inputs, config.run(), &world)?;
    if let Some(val) = data.val.as_ref().filter(|val| plan.rank == 0 && !val.has_boxes()) {
        let split = &val.split.meta.split;
        tracing::warn!("the validation split {split} has no boxes: its AP is undefined (-1)");
    }
    if let Some(c) = &from {
        resume::check_progress(c, &plan, &config, data.train.split.fingerprint())?;
    }
    if args.dry_run {
        return settings::print(&config, &plan);
    }
    let step = build_step(&config, &plan, data.train.categories(), from.as_ref(), &world)?;
    init::check_agreement(&step.detector.params, &world)?;
    let attempt = if plan.rank == 0 {
        if from.as_ref().is_some_and(|c| !resume::is_inside(&c.path, &work_dir)) {
            jsonl::start_over(&work_dir.join(jsonl::NAME))?;
        }
        prepare_work_dir(&work_dir, start, &config, &plan, &step.detector)?
    } else {
        0
    };
    let validation = data.val.map(Validation::new);
    Run { plan: &plan, world, train: data.train, validation, step, start, work_dir, attempt }
        .train()
        .map_err(|e| resume::with_hint(e, &args.resume))
}

/// Number of CPU threads of this rank, checked against the machine.
fn num_threads(config: &Config, topology: &Topology, dry_run: bool) -> Result<usize> {
    threads::check("data.workers", config.data.workers, topology, dry_run)?;
    threads::resolve(config.train.threads, topology, dry_run)
}

/// Selects this rank's device and applies the run's precision and determinism to it; `auto` in
/// `train.precision` is replaced by the precision that it selects on the device. A dry run starts
/// no threads.
fn select_device(
    args: &TrainArgs,
    config: &mut Config,
    num_threads: usize,
    topology: &Topology,
) -> Result<Device> {
    device::deterministic(config.train.deterministic)?;
    let num_threads = if args.dry_run { 1 } else { num_threads };
    let device = super::device(args.device, num_threads, topology)?;
    config.train.precision = config.train.precision.resolve(device)?;
    config.train.precision.apply(device)?;
    Ok(device)
}

/// Locks the work directory for this run, on rank 0.
fn lock(work_dir: &Path, dry_run: bool, world: &World) -> Result<Option<Lock>> {
    if dry_run || world.rank() > 0 {
        return Ok(None);
    }
    std::fs::create_dir_all(work_dir)
        .map_err(Error::io("cannot create the work directory", work_dir))?;
    Lock::take(work_dir).map(Some)
}

/// Names of the splits of COCO 2017, which are preferred: training and validation.
const COCO_SPLITS: (&str, &str) = ("train2017", "val2017");

/// Training images with boxes, validation images and categories of COCO 2017.
const COCO_SIZE: (usize, usize, usize) = (117_266, 5_000, 80);

/// The splits of a run.
pub(super) struct Data {
    pub(super) train: Arc<Dataset>,
    /// `None` for a run without evaluation.
    pub(super) val: Option<Dataset>,
}

impl Data {
    /// Opens the splits and stores their names, and the absolute path of the shards, in the
    /// configuration: the run's files then refer to the same data from any directory.
    pub(super) fn open(config: &mut Config) -> Result<Self> {
        let evaluates = config.eval.every_epochs > 0;
        let d = &mut config.data;
        let usual = COCO_SPLITS;
        d.train_split =
            choose_split(&d.shards, &d.train_split, usual.0, "train", "data.train_split")?;
        if evaluates {
            d.val_split = choose_split(&d.shards, &d.val_split, usual.1, "val", "data.val_split")
                .map_err(|e| match e {
                Error::Usage(text) => Error::Usage(format!(
                    "{text}; to train without evaluation: --set eval.every_epochs=0"
                )),
                e => e,
            })?;
        }
        d.shards = std::path::absolute(&d.shards).map_err(Error::io("cannot find", &d.shards))?;
        let train = Dataset::open(&d.shards, &d.train_split, d.limit, d.filter_empty)?;
        let val = if evaluates {
            let val = Dataset::open(&d.shards, &d.val_split, d.limit, false)?;
            same_categories(train.categories(), val.categories(), &d.train_split, &d.val_split)?;
            Some(val)
        } else {
            None
        };
        Ok(Self { train: Arc::new(train), val })
    }
}

/// The checkpoint to resume from, if any, and the global batch of the run (images).
///
/// # Errors
/// A checkpoint of another run, or a start that would overwrite later checkpoints.
fn starting_point(
    args: &TrainArgs,
    config: &mut Config,
    data: &Data,
    work_dir: &Path,
    world: &World,
) -> Result<(Option<Checkpoint>, usize)> {
    let checkpoints = work_dir.join("checkpoints");
    // Rank 0 alone chooses and writes checkpoints.
    let newest = if world.rank() == 0 { checkpoint::newest_step(&checkpoints)? } else { None };
    // After a restart the command line is still that of the first start: its `--resume` applies
    // only until there is a checkpoint.
    let again = restart::restarted() && newest.is_some();
    let requested = if again { &Resume::Auto } else { &args.resume };
    let from = resume::choose(requested, &checkpoints, world)?;
    if *requested != Resume::Auto {
        resume::check_unused(&checkpoints, newest, from.as_ref(), work_dir)?;
    }
    let mut global_batch = config.train.global_batch(world.size());
    if let Some(c) = &from {
        let saved = config::from_toml(&c.config, &c.path)?;
        let changes = args.resume_with_changes;
        let command = resume::continuation(c, requested, work_dir);
        global_batch = resume::check(c, &saved, &data.train, config, world, changes, &command)?;
        if config.model.init != saved.model.init && world.rank() == 0 {
            tracing::warn!(
                "model.init = {:?} has no effect, because the run resumes from a checkpoint",
                config.model.init
            );
        }
        if let Some(val) = data.val.as_ref().filter(|_| world.rank() == 0) {
            resume::warn_of_other_validation(c, val);
        }
        // The run's files keep the value with which it was started.
        config.model.init.clone_from(&saved.model.init);
    }
    Ok((from, global_batch))
}

/// Builds the network with its initial weights or those of a checkpoint.
fn build_step(
    config: &Config,
    plan: &Plan,
    categories: &[Category],
    from: Option<&Checkpoint>,
    world: &Arc<World>,
) -> Result<Step> {
    tch::manual_seed(config.train.seed as i64);
    let (classes, device) = (plan.inputs.classes, plan.inputs.device);
    let precision = config.train.precision;
    let mut detector = Detector::new(&config.model, classes, precision.kind(), device);
    detector.activations = precision.activations();
    let strategy = config.assign.build(&mut detector.params, classes as i64);
    if from.is_none() {
        init::weights(&mut detector, &config.model, categories, world)?;
    }
    let mut step = Step::new(detector, strategy, &config.train, world)?;
    device::keep_freed(plan.inputs.device);
    if let Some(c) = from {
        c.load(&mut step.detector.params, Some(&step.flat))?;
        tracing::info!("resuming from {} (step {})", c.path.display(), c.state.step);
    }
    Ok(step)
}

/// A dry run whose shards do not exist yet: the settings are resolved for COCO 2017.
fn dry_run_without_data(
    mut config: Config,
    args: &TrainArgs,
    num_threads: usize,
    topology: &Topology,
    world: &mut Option<Arc<World>>,
) -> Result<()> {
    init::check(&config.model.init)?;
    let (train_images, val_images, classes) = COCO_SIZE;
    if topology.rank == 0 {
        tracing::warn!(
            "{} does not exist: showing the settings for COCO 2017 ({classes} classes, \
             {train_images} and {val_images} images)",
            config.data.shards.display()
        );
    }
    let d = &mut config.data;
    for (split, usual) in [(&mut d.train_split, COCO_SPLITS.0), (&mut d.val_split, COCO_SPLITS.1)] {
        if split.is_empty() {
            usual.clone_into(split);
        }
    }
    let device = select_device(args, &mut config, num_threads, topology)?;
    let world = join(device, world)?;
    let global_batch = config.train.global_batch(world.size());
    let inputs = RunInputs {
        name: args.name(),
        toml: config.to_toml()?,
        classes,
        train_images,
        val_images,
        device,
        threads: num_threads,
        global_batch,
    };
    settings::print(&config, &Plan::new(inputs, config.run(), &world)?)
}

/// Checks that every rank has the same settings, data and starting step: a node with its own work
/// directory or data would train a different network.
fn check_agreement(config: &Config, data: &Data, start: usize, world: &World) -> Result<()> {
    let val = data.val.as_ref().map_or_else(|| "none".to_owned(), Dataset::identity);
    let train = data.train.identity();
    let mine = format!("step {start}, data {train}, validation {val}, settings {config:?}");
    check_same_on_all_ranks(&mine, "settings", world)
}

/// Removes temporary folders of interrupted checkpoints, logs the settings, and stores them in the
/// work directory unless no step is left. Returns the number of this attempt, from 1.
fn prepare_work_dir(
    dir: &Path,
    start: usize,
    config: &Config,
    plan: &Plan,
    detector: &Detector,
) -> Result<usize> {
    checkpoint::clean(&dir.join("checkpoints"));
    let table = table::settings(config, plan, detector);
    tracing::info!("settings\n{table}");
    settings::warn(config, plan);
    if start >= plan.total_steps {
        return Ok(work_dir::attempts(dir).max(1));
    }
    work_dir::record(dir, &plan.inputs.toml, &(table + "\n"))
}
