//! From a command line to a running loop: data, plan, network, weights or checkpoint, work directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dw_launch::{Topology, World};
use tch::Device;

use super::lock::Lock;
pub use super::resume::Resume;
use super::run::Run;
use super::step::Step;
use super::validation::Validation;
use super::{checkpoint, init, resume, work_dir};
use crate::app;
use crate::config::{self, Config};
use crate::data::Dataset;
use crate::data::dataset::{choose_split, same_categories};
use crate::device::{self, Choice};
use crate::error::{Error, Result};
use crate::join::join;
use crate::model::Detector;
use crate::plan::Plan;
use crate::threads;

/// What `dw-train` was asked for.
#[derive(Debug)]
pub struct Request {
    /// Name or path of the configuration.
    pub config: String,
    /// `key.path=value`, laid over it.
    pub sets: Vec<String>,
    /// Where results go; `work/NAME` when not given.
    pub work_dir: Option<PathBuf>,
    /// Which checkpoint to go on from.
    pub resume: Resume,
    /// Go on although settings that decide the result differ.
    pub with_changes: bool,
    /// Device.
    pub device: Choice,
    /// Resolve and print everything, then end.
    pub dry_run: bool,
}

/// Prepares and trains.
///
/// # Errors
/// Anything a user can get wrong, and what can go wrong on the way.
#[expect(clippy::print_stdout, reason = "the settings table of --dry-run is the result")]
pub fn train(request: &Request, topology: &Topology, world: &mut Option<Arc<World>>) -> Result<()> {
    let mut config = config::load(&request.config, &request.sets)?;
    config.resolve();
    let name = Path::new(&request.config)
        .file_stem()
        .map_or_else(|| "run".into(), |s| s.to_string_lossy().into_owned());
    let work_dir = request.work_dir.clone().unwrap_or_else(|| Path::new("work").join(&name));
    let threads = threads_of(&config, topology, request.dry_run)?;
    if request.dry_run && !config.data.shards.exists() {
        return without_data(&name, config, request, threads, topology, world);
    }
    let (train, val) = open_data(&mut config)?;
    let checkpoints = work_dir.join("checkpoints");
    let device = device_of(request, &mut config, threads, topology)?;
    let world = join(device, world)?;
    world.set_deadline(Duration::from_secs_f64(config.train.start_deadline_s));
    // Held to the end of this function: until the run has ended.
    let _lock = lock(&work_dir, request.dry_run, &world)?;
    let from = resume::choose(&request.resume, &checkpoints, &world)?;
    let mut global_batch = config.train.images_per_rank * world.size();
    if let Some(c) = &from {
        global_batch = resume::check(c, &train, &config, &world, request.with_changes)?;
        // The starting weights were loaded then; which stages are frozen follows from them.
        config.model.init.clone_from(&c.config.model.init);
    }
    let start = from.as_ref().map_or(0, |c| c.state.step);
    if request.resume != Resume::Auto
        && let Some(later) = checkpoint::newest_step(&checkpoints).filter(|s| *s > start)
    {
        return Err(Error::Usage(format!(
            "{}: holds a checkpoint of step {later}, which a run from step {start} would overwrite\nhint: choose another --work-dir, or remove it",
            checkpoints.display()
        )));
    }
    agree(
        &world,
        &format!(
            "step {start}, data {:08x} ({} images), settings {config:?}",
            train.split.fingerprint(),
            train.len()
        ),
    )?;
    let images = (train.len(), val.as_ref().map_or(0, Dataset::len));
    let plan = Plan::new(
        &name,
        config,
        train.categories().len(),
        images,
        device,
        &world,
        threads,
        global_batch,
    )?;
    tch::manual_seed(plan.config.train.seed as i64);
    let mut detector =
        Detector::new(&plan.config.model, plan.classes, plan.config.train.precision.kind(), device);
    let strategy = plan.config.assign.build(&mut detector.params, plan.classes as i64);
    if request.dry_run {
        if plan.rank == 0 {
            println!("{}", plan.table(&detector));
        }
        return Ok(());
    }
    if from.is_none() {
        init::weights(&mut detector, &plan.config.model, &world)?;
    }
    let mut step = Step::new(detector, strategy, &plan.config, &world)?;
    if let Some(c) = &from {
        c.load(&mut step.detector.params, Some(&step.flat))?;
        tracing::info!("going on from {} (step {start})", c.path.display());
    }
    let attempt =
        if plan.rank == 0 { prepare_work_dir(&work_dir, start, &plan, &step.detector)? } else { 0 };
    let validation = val.map(Validation::new);
    Run { plan: &plan, world, train, validation, step, start, work_dir, attempt }.train()
}

/// Threads of this rank, after a look at what the machine has.
fn threads_of(config: &Config, topology: &Topology, dry_run: bool) -> Result<usize> {
    threads::check("train.threads", config.train.threads, topology, dry_run)?;
    threads::check("data.workers", config.data.workers, topology, dry_run)?;
    Ok(threads::resolve(config.train.threads, topology))
}

/// This rank's device, set to the precision and determinism of the run; `train.precision` becomes what it
/// stands for on this device. A dry run computes nothing: it starts no threads.
fn device_of(
    request: &Request,
    config: &mut Config,
    threads: usize,
    topology: &Topology,
) -> Result<Device> {
    device::deterministic(config.train.deterministic)?;
    let device = app::device(request.device, if request.dry_run { 1 } else { threads }, topology)?;
    config.train.precision = config.train.precision.resolve(device)?;
    config.train.precision.apply()?;
    Ok(device)
}

/// Takes the work directory for this run, on rank 0.
fn lock(work_dir: &Path, dry_run: bool, world: &World) -> Result<Option<Lock>> {
    if dry_run || world.rank() > 0 {
        return Ok(None);
    }
    fs_err::create_dir_all(work_dir)
        .map_err(Error::io("cannot create the work directory", work_dir))?;
    Lock::take(work_dir).map(Some)
}

/// Opens training and validation split, and puts their names and the folder's whole path into the
/// configuration, as the run's files keep them.
fn open_data(config: &mut Config) -> Result<(Arc<Dataset>, Option<Dataset>)> {
    let d = &mut config.data;
    d.train_split = choose_split(&d.shards, &d.train_split, USUAL.0, "train", "data.train_split")?;
    if config.eval.every_epochs > 0 {
        d.val_split = choose_split(&d.shards, &d.val_split, USUAL.1, "val", "data.val_split")?;
    }
    // Found again from wherever the run is evaluated.
    d.shards = std::path::absolute(&d.shards).map_err(Error::io("cannot find", &d.shards))?;
    let train = Arc::new(Dataset::open(&d.shards, &d.train_split, d.limit, d.filter_empty)?);
    let val = validation(config, &train)?;
    Ok((train, val))
}

/// Splits of COCO 2017.
const USUAL: (&str, &str) = ("train2017", "val2017");

/// Images of COCO 2017 that have boxes, of its validation split, and its categories.
const COCO: (usize, usize, usize) = (117_266, 5_000, 80);

/// The settings of a run whose data are not there yet, as if they were COCO's.
#[expect(clippy::print_stdout, reason = "the settings table of --dry-run is the result")]
fn without_data(
    name: &str,
    mut config: Config,
    request: &Request,
    threads: usize,
    topology: &Topology,
    world: &mut Option<Arc<World>>,
) -> Result<()> {
    let (train, val, classes) = COCO;
    if topology.rank == 0 {
        tracing::warn!(
            "{} is not there: the settings are shown for COCO 2017 ({classes} classes, {train} and {val} images)",
            config.data.shards.display()
        );
    }
    for (name, usual) in
        [(&mut config.data.train_split, USUAL.0), (&mut config.data.val_split, USUAL.1)]
    {
        if name.is_empty() {
            usual.clone_into(name);
        }
    }
    let device = device_of(request, &mut config, threads, topology)?;
    let world = join(device, world)?;
    let global_batch = config.train.images_per_rank * world.size();
    let plan =
        Plan::new(name, config, classes, (train, val), device, &world, threads, global_batch)?;
    if plan.rank == 0 {
        let mut detector = Detector::new(
            &plan.config.model,
            plan.classes,
            plan.config.train.precision.kind(),
            device,
        );
        let _ = plan.config.assign.build(&mut detector.params, plan.classes as i64);
        println!("{}", plan.table(&detector));
    }
    Ok(())
}

/// The validation split; training without evaluation needs none.
fn validation(config: &Config, train: &Dataset) -> Result<Option<Dataset>> {
    if config.eval.every_epochs == 0 {
        return Ok(None);
    }
    let d = &config.data;
    let val = Dataset::open(&d.shards, &d.val_split, d.limit, false)?;
    same_categories(train.categories(), val.categories(), &d.train_split, &d.val_split)?;
    Ok(Some(val))
}

/// Every rank must have read the same: with a work directory or data of its own a node would train something else.
fn agree(world: &World, mine: &str) -> Result<()> {
    let first = world.broadcast_bytes(mine.as_bytes().to_vec(), "settings")?;
    if first == mine.as_bytes() {
        return Ok(());
    }
    let first = String::from_utf8_lossy(&first);
    Err(Error::Usage(format!(
        "rank {} and rank 0 disagree about the run\nrank 0: {first}\nhere:   {mine}\nhint: data, configuration and work directory must be on storage that all nodes share",
        world.rank()
    )))
}

/// Makes the work directory ready, and leaves the settings of this start in it unless there is nothing
/// more to do. Returns the number of the start.
fn prepare_work_dir(dir: &Path, start: usize, plan: &Plan, detector: &Detector) -> Result<usize> {
    checkpoint::clean(&dir.join("checkpoints"))?;
    let table = plan.table(detector);
    tracing::info!("settings\n{table}");
    if let Some(caution) = plan.config.assign.caution(&plan.config.model) {
        tracing::warn!("{caution}");
    }
    if start >= plan.total_steps {
        return Ok(work_dir::attempts(dir).max(1));
    }
    let saved = toml::to_string(&plan.config)
        .map_err(|e| Error::Usage(format!("cannot save the configuration: {e}")))?;
    work_dir::record(dir, &saved, &(table + "\n"))
}
