//! What the binaries share: joining the job, logging, reporting an error once, exit codes.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, LazyLock};

use dw_base::text::shown;
use dw_launch::nccl::{Library, Nccl};
use dw_launch::{Op, Topology, World};
use tch::Device;

use dw_shards::coco::Category;
use dw_weights::Weights;

use crate::config::{self, Config};
use crate::data::Dataset;
use crate::data::dataset::same_categories;
use crate::device;
use crate::error::{Error, Result};
use crate::model::{Detector, weights};
use crate::train::checkpoint::{self, Checkpoint};

/// Text of `--version`.
pub static VERSION: LazyLock<String> = LazyLock::new(|| {
    #[cfg(feature = "mpi")]
    let mpi = dw_launch::mpi::library_version();
    #[cfg(not(feature = "mpi"))]
    let mpi = "not in this build";
    let nccl = dw_launch::nccl::version().unwrap_or_else(|| "not found".into());
    format!("{} ({})\nlibtorch {}\nMPI: {mpi}\nNCCL: {nccl}", env!("CARGO_PKG_VERSION"), env!("DW_GIT"), crate::torch_ext::version())
});

/// Runs a program as one rank of a job. Errors are told once and end every rank.
pub fn run(main: impl FnOnce(&Topology, &mut Option<Arc<World>>) -> Result<()>) -> ExitCode {
    crate::threads::wait_passively();
    dw_launch::prepare();
    let topology = Topology::from_env();
    let filter = tracing_subscriber::EnvFilter::try_from_env("DW_LOG").unwrap_or_else(|_| "info".into());
    // Other ranks speak only when something is wrong.
    let filter = if topology.rank == 0 { filter } else { "warn".into() };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .compact()
        .init();
    if topology.world == 1 {
        dw_launch::abort::install_panic_hook(0, |code| dw_launch::Collectives::abort(&dw_launch::Solo, code));
    }
    dw_launch::lost_file::tell(topology.rank);
    let mut world: Option<Arc<World>> = None;
    let Err(e) = main(&topology, &mut world) else {
        if let Some(world) = world {
            world.leave(0);
        }
        return ExitCode::SUCCESS;
    };
    if let Error::Preempted(text) = &e {
        // Decided together: every rank leaves by itself, no peer is waiting.
        if topology.rank == 0 {
            dw_launch::abort::last_words(text);
        }
        if let Some(world) = world {
            world.leave(75);
        }
        return ExitCode::from(75);
    }
    if topology.rank != 0 {
        // A mistake, or a verdict of all ranks, is the same everywhere: rank 0 tells it, and its end takes the others along
        // within seconds, or, where it still writes a checkpoint, after that. A file or memory may fail on one rank alone.
        let patience = match e {
            Error::NotFinite(_) => 60,
            Error::Usage(_) => 4,
            _ if world.is_none() => 4,
            _ => 1,
        };
        std::thread::sleep(std::time::Duration::from_secs(patience));
    }
    let place = if topology.world > 1 { format!("[rank {}] ", topology.rank) } else { String::new() };
    dw_launch::abort::last_words(&format!("{place}error: {e}"));
    match world {
        Some(world) => world.abort(e.exit_code(), &e.to_string()),
        None => ExitCode::from(e.exit_code() as u8),
    }
}

/// Joins the job on a device: NCCL on CUDA with several ranks, MPI or nothing on the CPU. `place` has the job from the first
/// moment on, so that an error can end it.
///
/// # Errors
/// No MPI or NCCL where they are needed; a peer that was lost on the way.
pub fn join(device: Device, place: &mut Option<Arc<World>>) -> Result<Arc<World>> {
    // A set-up that cannot work is the user's to mend: starting again would not help.
    let setup = |e: dw_launch::Error| if e.out_of_resources() { Error::Peer(e) } else { Error::Usage(e.to_string()) };
    let world = place.insert(Arc::new(World::new(dw_launch::join().map_err(setup)?)?)).clone();
    tell_places(&world)?;
    let cuda = f64::from(u8::from(matches!(device, Device::Cuda(_))));
    let mut lowest = [cuda, -cuda];
    world.all_reduce(&mut lowest, Op::Min, "devices")?;
    if lowest[0] != -lowest[1] {
        return Err(Error::Usage("some ranks found a CUDA device and others did not\nhint: choose --device cpu or cuda for all".into()));
    }
    let (Device::Cuda(index), true) = (device, world.size() > 1) else { return Ok(world) };
    let stream = crate::torch_ext::CudaSide::new(index).map_err(|e| Error::Usage(format!("no stream on CUDA device {index}: {e}")))?;
    let library = world.together("opening NCCL", |base| Library::open_on_all(&*base)).map_err(setup)?;
    let nccl = world.together("joining NCCL", |base| Nccl::join(library, base, Box::new(stream)))?;
    Ok(place.insert(Arc::new(world.over(Arc::new(nccl)))).clone())
}

/// Says which ranks are where and which network they were told to use: the first thing to look at when a job is slow or hangs.
fn tell_places(world: &World) -> Result<()> {
    let hosts = world.gather_bytes(dw_launch::host().as_bytes(), "hosts")?;
    if world.rank() > 0 || world.size() == 1 {
        return Ok(());
    }
    let names: Vec<String> = hosts.iter().map(|h| String::from_utf8_lossy(h).into_owned()).collect();
    let mut places: Vec<String> = vec![];
    for part in names.chunk_by(|a, b| a == b) {
        places.push(format!("{} on {}", part.len(), part[0]));
    }
    let networks = ["OMPI_MCA_btl_tcp_if_include", "NCCL_SOCKET_IFNAME", "NCCL_IB_HCA"];
    let set: Vec<String> = networks.iter().filter_map(|n| Some(format!("{n}={}", std::env::var(n).ok()?))).collect();
    let network = if set.is_empty() { "network chosen by the libraries".to_owned() } else { set.join(", ") };
    tracing::info!("ranks in order: {}; {network}", places.join(", "));
    Ok(())
}

/// This rank's device; libtorch gets `threads` threads on the CPU.
///
/// # Errors
/// CUDA was asked for and cannot be had; the machine does not give that many threads.
pub fn device(choice: device::Choice, threads: usize, topology: &Topology) -> Result<Device> {
    let device = device::pick(choice, topology)?;
    crate::threads::probe(threads)?;
    tch::set_num_threads(threads as i32);
    crate::torch_ext::flush_denormals();
    Ok(device)
}

/// A checkpoint by its folder, or the newest of a work directory.
///
/// # Errors
/// Neither.
pub fn find_checkpoint(path: &Path) -> Result<Checkpoint> {
    let inside = path.join("checkpoints");
    if inside.is_dir() {
        return checkpoint::newest(&inside).ok_or_else(|| Error::Usage(format!("no whole checkpoint in {}", inside.display())));
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
                Error::Usage(format!("{}: {text}\nhint: name its configuration, as --config dw_r50_fpn_1x", path.display()))
            })?;
            return Ok(Self { config: config::load(name, sets)?, categories: None, weights: path.to_owned() });
        }
        let c = find_checkpoint(path)?;
        if config.is_some() {
            let text = "a checkpoint brings its own configuration; --config is for weight files";
            return Err(Error::Usage(format!("{}: {text}\nhint: change single keys with --set", path.display())));
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
        let mut detector = Detector::new(&self.config.model, data.categories().len(), self.config.train.precision.kind(), device);
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
    let label = (0..names.len().max(ours.len())).find(|i| names.get(*i) != ours.get(*i).copied()).unwrap_or(0);
    let name = |n: Option<&String>| n.map_or_else(|| "nothing".to_owned(), |n| format!("`{}`", shown(n)));
    Err(Error::Data(format!(
        "the classes of {path} and of the data differ: label {label} is {} in one and {} in the other\nhint: name the categories alike and pack again",
        name(names.get(label)),
        name(ours.get(label).copied())
    )))
}
