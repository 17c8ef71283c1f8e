//! What the binaries share: the order of start-up, logging, reporting an error once, exit codes, saved weights.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dw_base::text::shown;
use dw_launch::abort::exit_now;
use dw_launch::{Topology, World};
use tch::Device;

use dw_shards::coco::Category;
use dw_weights::Weights;

use crate::config::{self, Config};
use crate::data::Dataset;
use crate::data::dataset::same_categories;
use crate::device::{self, Choice};
use crate::error::{Error, Result};
use crate::model::{Detector, weights};
use crate::train::checkpoint::{self, Checkpoint};
use crate::{threads, torch};

/// Text of `--version`. Libraries are opened for it, in the order that training opens them: an NCCL that was
/// loaded before libtorch's CUDA half would take the place of the one that belongs to it.
fn version() -> String {
    #[cfg(feature = "mpi")]
    let mpi = dw_launch::mpi::library_version();
    #[cfg(not(feature = "mpi"))]
    let mpi = "not in this build";
    device::open(Choice::Auto);
    let cuda =
        device::cuda::devices().map_or_else(|e| first_line(&e), |count| format!("{count} devices"));
    let nccl = dw_launch::nccl::loaded().map_or_else(
        || "not loaded (it comes with libtorch's CUDA half)".into(),
        |n| n.to_string(),
    );
    let (version, revision, torch) = (env!("CARGO_PKG_VERSION"), env!("DW_GIT"), torch::version());
    format!("{version} ({revision})\nlibtorch {torch}\nCUDA: {cuda}\nMPI: {mpi}\nNCCL: {nccl}")
}

fn first_line(e: &Error) -> String {
    e.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Parses the command line; ends the process for `--help`, `--version` and mistakes.
#[expect(clippy::print_stdout, reason = "the version is the result")]
pub fn parse<C: clap::Parser>() -> C {
    C::try_parse().unwrap_or_else(|e| {
        if e.kind() == clap::error::ErrorKind::DisplayVersion {
            println!("{} {}", C::command().get_name(), version());
            exit_now(0)
        }
        e.exit()
    })
}

/// What a program asks for at its start.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    /// The device it will compute on.
    pub device: Choice,
    /// USR1 and TERM ask for a checkpoint instead of ending the process.
    pub catch_signals: bool,
}

/// Runs a program as one rank of a job, and ends the process. An error is reported once and ends every rank.
pub fn run(start: Start, main: impl FnOnce(&Topology, &mut Option<Arc<World>>) -> Result<()>) -> ! {
    threads::wait_passively();
    let listening =
        if start.catch_signals { dw_launch::signals::listen().map(drop) } else { Ok(()) };
    dw_launch::prepare();
    device::open(start.device);
    let topology = Topology::from_env();
    log_to_stderr(&topology);
    if topology.world == 1 {
        dw_launch::abort::install_panic_hook(0, |code| {
            dw_launch::Collectives::abort(&dw_launch::Solo, code)
        });
    }
    dw_launch::lost_file::tell(topology.rank);
    let mut world: Option<Arc<World>> = None;
    let listening = listening.map_err(Error::io("cannot listen to", Path::new("signals")));
    match listening.and_then(|()| main(&topology, &mut world)) {
        Ok(()) => finish(world, 0),
        // Decided together: every rank leaves by itself, no peer is waiting.
        Err(Error::Preempted(text)) => {
            if topology.rank == 0 {
                dw_launch::abort::last_words(&text);
            }
            finish(world, 75)
        }
        Err(e) => fail(&e, &topology, world),
    }
}

/// Logs to standard error; ranks other than 0 only warnings and errors.
fn log_to_stderr(topology: &Topology) {
    let filter =
        tracing_subscriber::EnvFilter::try_from_env("DW_LOG").unwrap_or_else(|_| "info".into());
    let filter = if topology.rank == 0 { filter } else { "warn".into() };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .compact()
        .init();
}

fn finish(world: Option<Arc<World>>, code: u8) -> ! {
    if let Some(world) = world {
        world.leave(code.into());
    }
    exit_now(code.into())
}

/// Reports an error and ends the job.
fn fail(e: &Error, topology: &Topology, world: Option<Arc<World>>) -> ! {
    if topology.rank != 0 {
        // A mistake, or a verdict of all ranks, is the same everywhere: rank 0 reports it, and its end takes the others
        // along within seconds, or, where it still writes a checkpoint, after that. A file, memory or a device may fail
        // on one rank alone.
        let seconds = match e {
            Error::NotFinite(_) => 60,
            Error::Usage(_) => 4,
            _ if world.is_none() => 4,
            _ => 1,
        };
        std::thread::sleep(std::time::Duration::from_secs(seconds));
    }
    let place =
        if topology.world > 1 { format!("[rank {}] ", topology.rank) } else { String::new() };
    dw_launch::abort::last_words(&format!("{place}error: {e}"));
    match world {
        Some(world) => world.abort(e.exit_code(), &e.to_string()),
        None => exit_now(e.exit_code()),
    }
}

/// This rank's device; libtorch gets `threads` threads on the CPU.
///
/// # Errors
/// CUDA was asked for and cannot be had; the machine does not give that many threads.
pub fn device(choice: Choice, threads: usize, topology: &Topology) -> Result<Device> {
    let device = device::pick(choice, topology)?;
    threads::probe(threads)?;
    tch::set_num_threads(threads as i32);
    torch::flush_denormals();
    Ok(device)
}

/// A checkpoint by its folder, or the newest of a work directory.
///
/// # Errors
/// Neither.
pub fn find_checkpoint(path: &Path) -> Result<Checkpoint> {
    let inside = path.join("checkpoints");
    if inside.is_dir() {
        return checkpoint::newest(&inside)
            .ok_or_else(|| Error::Usage(format!("no whole checkpoint in {}", inside.display())));
    }
    checkpoint::open(path)
}

/// Weights to detect with, and the configuration that they belong to.
#[derive(Debug)]
pub struct Saved {
    /// The run's, or the one that was named.
    pub config: Config,
    /// The run's; a bare weight file does not say.
    categories: Option<Vec<Category>>,
    weights: PathBuf,
}

impl Saved {
    /// A checkpoint folder or work directory, or a weight file together with the name of its configuration.
    ///
    /// # Errors
    /// None of these, or a file without a configuration.
    pub fn find(path: &Path, config: Option<&str>, sets: &[String]) -> Result<Self> {
        if path.is_file() {
            let name = config.ok_or_else(|| {
                let text = "a weight file does not say which network it belongs to";
                Error::Usage(format!(
                    "{}: {text}\nhint: name its configuration, as --config dw_r50_fpn_1x",
                    path.display()
                ))
            })?;
            return Ok(Self {
                config: config::load(name, sets)?,
                categories: None,
                weights: path.to_owned(),
            });
        }
        let c = find_checkpoint(path)?;
        if config.is_some() {
            let text = "a checkpoint brings its own configuration; --config is for weight files";
            return Err(Error::Usage(format!(
                "{}: {text}\nhint: change single keys with --set",
                path.display()
            )));
        }
        let config = config::with_sets(&c.config, sets)?;
        Ok(Self { config, categories: Some(c.state.categories), weights: c.path })
    }

    /// The network with these weights, ready to detect on `data`.
    ///
    /// # Errors
    /// Damaged weights, weights of another network, or of other categories than `data` has.
    pub fn detector(&self, data: &Dataset, device: Device) -> Result<Detector> {
        let file = Weights::open(&self.weights)?;
        if let Some(own) = &self.categories {
            same_categories(own, data.categories(), "the checkpoint", "the data")?;
        } else {
            same_names(&file, data.categories())?;
        }
        let precision = self.config.train.precision.for_evaluation(device);
        precision.apply()?;
        tracing::info!("the network runs in {} on {device:?}", precision.name());
        let classes = data.categories().len();
        let mut detector = Detector::new(&self.config.model, classes, precision.kind(), device);
        self.config.assign.build(&mut detector.params, classes as i64).attach(&mut detector);
        let mut report = weights::load(&file, &mut detector.params)?;
        // A count of batches that nothing reads; files of older programs lack it.
        report.missing.retain(|name| !name.ends_with(".num_batches_tracked"));
        if !report.complete() {
            let text = "not all weights of the network are in the file, or they have another shape";
            return Err(Error::Usage(format!(
                "{}: {text}: {report}\nhint: check --config and the data's categories",
                self.weights.display()
            )));
        }
        Ok(detector)
    }
}

/// The classes that a weight file names must be the data's, in their order.
fn same_names(file: &Weights, categories: &[Category]) -> Result<()> {
    let path = file.path.display();
    let Some(names) = &file.classes else {
        tracing::info!("{path}: names no classes; taken in the order of the data's");
        return Ok(());
    };
    let ours: Vec<&String> = categories.iter().map(|c| &c.name).collect();
    if names.iter().eq(ours.iter().copied()) {
        tracing::info!("{path}: its {} classes are the data's", names.len());
        return Ok(());
    }
    let label = (0..names.len().max(ours.len()))
        .find(|i| names.get(*i) != ours.get(*i).copied())
        .unwrap_or(0);
    let name =
        |n: Option<&String>| n.map_or_else(|| "nothing".to_owned(), |n| format!("`{}`", shown(n)));
    Err(Error::Data(format!(
        "the classes of {path} and of the data differ: label {label} is {} in one and {} in the other\nhint: name the categories alike and pack again",
        name(names.get(label)),
        name(ours.get(label).copied())
    )))
}
