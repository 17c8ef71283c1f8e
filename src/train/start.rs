//! From a command line to a running loop: data, plan, network, weights or checkpoint, work directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dw_launch::{Topology, World, signals};

use super::checkpoint::{self, Checkpoint};
use super::flat::Flat;
use super::{Run, checkpoint::State, init};
use crate::app;
use crate::config::{self, Config, DataConfig};
use crate::data::Dataset;
use crate::data::dataset::same_categories;
use crate::device::Choice;
use crate::error::{Error, Result};
use crate::model::Detector;
use crate::plan::Plan;

/// Which checkpoint to go on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// The newest of the work directory, if there is one.
    Auto,
    /// Start anew.
    None,
    /// This one.
    Path(PathBuf),
}

impl std::str::FromStr for Resume {
    type Err = std::convert::Infallible;
    fn from_str(s: &str) -> std::result::Result<Self, Self::Err> {
        Ok(match s {
            "auto" => Self::Auto,
            "none" => Self::None,
            path => Self::Path(path.into()),
        })
    }
}

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
    // From here on a signal asks for a checkpoint, and not only once the loop runs.
    signals::listen().map_err(Error::io("cannot listen to", Path::new("signals")))?;
    let mut config = config::load(&request.config, &request.sets)?;
    let name = Path::new(&request.config).file_stem().map_or_else(|| "run".into(), |s| s.to_string_lossy().into_owned());
    let work_dir = request.work_dir.clone().unwrap_or_else(|| Path::new("work").join(&name));
    if request.dry_run && !config.data.shards.exists() {
        return without_data(&name, config, request.device, topology, world);
    }
    let d = &config.data;
    let train = Arc::new(Dataset::open(&d.shards, &d.train_split, d.limit, d.filter_empty)?);
    let val = validation(&config, &train)?;
    let checkpoints = work_dir.join("checkpoints");
    let (device, threads) = app::device(request.device, config.train.threads, topology)?;
    let world = app::join(device, world)?;
    world.set_deadline(Duration::from_secs_f64(config.train.start_deadline_s));
    let from = choose(&request.resume, &checkpoints, &world)?;
    if let Some(c) = &from {
        check_resume(c, &train, &config)?;
        // The start lies behind; whether stages are frozen hangs on it.
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
    agree(&world, &format!("step {start}, data {:08x} ({} images), settings {config:?}", train.split.fingerprint(), train.len()))?;
    let images = (train.len(), val.as_ref().map_or(0, Dataset::len));
    let batch = from.as_ref().map(|c| c.state.global_batch);
    let plan = Plan::new(&name, config, train.categories().len(), images, device, &world, threads, batch)?;
    tch::manual_seed(plan.config.train.seed as i64);
    let mut detector = Detector::new(&plan.config.model, plan.classes, plan.config.train.precision.kind(), device);
    if request.dry_run {
        if plan.rank == 0 {
            println!("{}", plan.table(&detector));
        }
        return Ok(());
    }
    if from.is_none() {
        init::weights(&mut detector, &plan.config.model, &world)?;
    }
    let flat = Flat::new(&mut detector.params);
    if let Some(c) = &from {
        c.load(&mut detector.params, Some(&flat))?;
        if c.config.model != plan.config.model {
            let text = format!("it is of {:?}, the configuration asks for {:?}", c.config.model, plan.config.model);
            return Err(Error::Usage(format!("cannot go on from {}: {text}", c.path.display())));
        }
        tracing::info!("going on from {} (step {start})", c.path.display());
    }
    if plan.rank == 0 {
        prepare_work_dir(&work_dir, &plan, &detector)?;
        checkpoint::clean(&checkpoints)?;
    }
    Run { plan: &plan, world, train, val, detector, flat, start, work_dir }.train()
}

/// What another rank's file system may take to show what rank 0 sees (attribute caches of NFS hold for a minute).
const APPEARS: Duration = Duration::from_secs(90);

/// The checkpoint to go on from, which rank 0 chooses for all.
fn choose(resume: &Resume, checkpoints: &Path, world: &World) -> Result<Option<Checkpoint>> {
    let mine = match resume {
        _ if world.rank() > 0 => None,
        Resume::None => None,
        Resume::Auto => checkpoint::newest(checkpoints),
        Resume::Path(path) => Some(app::find_checkpoint(path)?),
    };
    let path = mine.as_ref().map(|c| c.path.as_os_str().as_encoded_bytes().to_vec()).unwrap_or_default();
    let path = world.broadcast_bytes(path, "checkpoint")?;
    if world.rank() == 0 || path.is_empty() {
        return Ok(mine);
    }
    // SAFETY: rank 0's own encoding of a path, by the same program.
    let path = PathBuf::from(unsafe { std::ffi::OsString::from_encoded_bytes_unchecked(path) });
    let began = Instant::now();
    while !checkpoint::is_whole(&path) && began.elapsed() < APPEARS {
        std::thread::sleep(Duration::from_millis(200));
    }
    checkpoint::open(&path).map(Some)
}

/// Images of COCO 2017 that have boxes, of its validation split, and its categories.
const COCO: (usize, usize, usize) = (117_266, 5_000, 80);

/// The settings of a run whose data are not there yet, as if they were COCO's.
#[expect(clippy::print_stdout, reason = "the settings table of --dry-run is the result")]
fn without_data(name: &str, config: Config, device: Choice, topology: &Topology, world: &mut Option<Arc<World>>) -> Result<()> {
    let (train, val, classes) = COCO;
    if topology.rank == 0 {
        tracing::warn!(
            "{} is not there: the settings are shown for COCO 2017 ({classes} classes, {train} and {val} images)",
            config.data.shards.display()
        );
    }
    let (device, threads) = app::device(device, config.train.threads, topology)?;
    let world = app::join(device, world)?;
    let plan = Plan::new(name, config, classes, (train, val), device, &world, threads, None)?;
    if plan.rank == 0 {
        let detector = Detector::new(&plan.config.model, plan.classes, plan.config.train.precision.kind(), device);
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

/// A run goes on only with the data, seed and network it began with (the network's shape is checked on loading).
fn check_resume(c: &Checkpoint, train: &Dataset, config: &Config) -> Result<()> {
    let State { data, seed, ref categories, .. } = c.state;
    same_categories(categories, train.categories(), "the checkpoint", "the data")?;
    let differs = |what: &str, hint: &str| Err(Error::Usage(format!("cannot go on from {}: {what}\nhint: {hint}", c.path.display())));
    if data != train.split.fingerprint() {
        return differs(
            "the training data are not those it began with",
            "pack the same data with the same options, or start anew with --resume none",
        );
    }
    if seed != config.train.seed {
        return differs(&format!("it began with seed {seed}, the configuration says {}", config.train.seed), "use the same `train.seed`");
    }
    let (old, new) = (&c.config.data, &config.data);
    let deciding = |d: &DataConfig| (d.limit, d.filter_empty, d.group, d.aspect_grouping, d.canonical_nodes);
    if deciding(old) != deciding(new) {
        return differs(
            "`data.limit`, `filter_empty`, `group`, `aspect_grouping` or `canonical_nodes` differ",
            "they decide which image comes when: set them as in that run's config.toml",
        );
    }
    Ok(())
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

fn prepare_work_dir(dir: &Path, plan: &Plan, detector: &Detector) -> Result<()> {
    fs_err::create_dir_all(dir).map_err(Error::io("cannot create the work directory", dir))?;
    let table = plan.table(detector);
    tracing::info!("settings\n{table}");
    let saved = toml::to_string(&plan.config).map_err(|e| Error::Usage(format!("cannot save the configuration: {e}")))?;
    for (name, text) in [("config.toml", saved), ("settings.txt", table + "\n")] {
        let path = dir.join(name);
        fs_err::write(&path, text).map_err(Error::io("cannot write", &path))?;
    }
    Ok(())
}
