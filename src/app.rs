//! What the binaries share: joining the job, logging, reporting an error once, exit codes.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::sync::LazyLock;

use dw_launch::{Collectives, Op, Topology};
use tch::{Device, Kind};

use crate::config::Config;
use crate::data::Dataset;
use crate::device;
use crate::error::{Error, Result};
use crate::model::Detector;
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
#[expect(clippy::print_stderr, reason = "the program's own last words")]
pub fn run(main: impl FnOnce(&Topology, &mut Option<Box<dyn Collectives>>) -> Result<()>) -> ExitCode {
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
        dw_launch::abort::install_panic_hook(0, |code| dw_launch::Solo.abort(code));
    }
    let mut world = None;
    let Err(e) = main(&topology, &mut world) else { return ExitCode::SUCCESS };
    if let Error::Preempted(text) = &e {
        // Decided together: every rank leaves by itself, no peer is waiting.
        if topology.rank == 0 {
            eprintln!("{text}");
        }
        return ExitCode::from(75);
    }
    if topology.rank != 0 {
        // Most mistakes are the same on every rank: rank 0 tells them, and its end takes the others along within seconds.
        std::thread::sleep(std::time::Duration::from_secs(4));
    }
    let place = if topology.world > 1 { format!("[rank {}] ", topology.rank) } else { String::new() };
    eprintln!("{place}error: {e}");
    match world {
        Some(world) => world.abort(e.exit_code()),
        None => ExitCode::from(e.exit_code() as u8),
    }
}

/// Joins the job on a device: NCCL on CUDA with several ranks, MPI or nothing on the CPU.
///
/// # Errors
/// No MPI or NCCL where they are needed.
pub fn join(device: Device) -> Result<Box<dyn Collectives>> {
    let base = dw_launch::join()?;
    let cuda = f64::from(u8::from(matches!(device, Device::Cuda(_))));
    let mut lowest = [cuda, -cuda];
    base.all_reduce(&mut lowest, Op::Min)?;
    if lowest[0] != -lowest[1] {
        return Err(Error::Usage("some ranks found a CUDA device and others did not\nhint: choose --device cpu or cuda for all".into()));
    }
    if cuda == 1.0 && base.size() > 1 {
        return Ok(Box::new(dw_launch::nccl::Nccl::join(base)?));
    }
    Ok(base)
}

/// Device and threads of this rank.
///
/// # Errors
/// CUDA was asked for and cannot be had.
pub fn device(choice: device::Choice, threads: usize, topology: &Topology) -> Result<(Device, usize)> {
    let device = device::pick(choice, topology)?;
    let threads = device::threads(threads, topology);
    tch::set_num_threads(threads as i32);
    crate::torch_ext::flush_denormals();
    Ok((device, threads))
}

/// A network with the weights of a checkpoint folder, ready to detect.
///
/// # Errors
/// A damaged checkpoint, or one of other categories than `data` has.
pub fn detector_of(c: &Checkpoint, data: &Dataset, device: Device) -> Result<Detector> {
    crate::data::dataset::same_categories(&c.state.categories, data.categories(), "the checkpoint", "the data")?;
    let mut detector = Detector::new(&c.state.architecture, Kind::Float, device);
    c.load(&mut detector.params, None)?;
    Ok(detector)
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

/// Puts the starting weights of `model.init` into a network.
///
/// # Errors
/// A file that is missing or of which nothing fits.
pub fn init_weights(detector: &mut Detector, config: &Config) -> Result<()> {
    let path = match config.model.init.as_str() {
        "random" => {
            tracing::warn!(
                "training from random weights: no stage of the backbone is frozen, and a good result takes far more epochs than from ImageNet weights"
            );
            if config.model.norm == crate::model::NormKind::FrozenBn {
                tracing::warn!("model.norm = \"frozen_bn\" normalises nothing from random weights: consider model.norm=gn");
            }
            return Ok(());
        }
        "imagenet" => {
            let cache = cache_dir().join("weights").join(format!("{}.safetensors", config.model.backbone.imagenet_file()));
            if !cache.is_file() {
                return Err(Error::Usage(format!(
                    "model.init = \"imagenet\": expected the weights in {}\nhint: put torchvision's {} there as .safetensors (same tensor names), or start with --init random or --init FILE",
                    cache.display(),
                    config.model.backbone.imagenet_file()
                )));
            }
            cache
        }
        file => file.into(),
    };
    let file = if path.is_dir() { find_checkpoint(&path)?.path.join("model.safetensors") } else { path };
    let report = checkpoint::copy_into(&checkpoint::read_tensors(&file)?, &mut detector.params);
    if report.matched == 0 {
        return Err(Error::Usage(format!("{}: none of its tensors fits the network: {report}", file.display())));
    }
    tracing::info!("{}: {report}", file.display());
    Ok(())
}

/// `$XDG_CACHE_HOME/dw`, or `~/.cache/dw`.
fn cache_dir() -> std::path::PathBuf {
    let home = || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    std::env::var_os("XDG_CACHE_HOME").map_or_else(home, Into::into).join("dw")
}
