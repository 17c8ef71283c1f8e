//! The programs: start-up in the required order, conversion of errors to exit codes, and the
//! commands themselves.
//!
//! * [`mod@train`], [`resume`] and [`settings`] are `dw-train`
//! * [`eval`] is `dw-eval` with a network
//! * [`detect`] is `dw-detect`; [`inference`] is what it shares with `dw-eval` and `dw-show`
//! * [`export`] is `dw-export`
//! * [`classes`] are the options of both for the classes of a weight file
//! * [`show`] is `dw-show`
//! * [`lab`] is `dw-lab`
//! * [`saved`] finds weights to evaluate or draw, with their configuration

pub mod classes;
pub mod detect;
pub mod eval;
pub mod export;
pub mod inference;
pub mod lab;
pub mod resume;
pub mod saved;
pub mod settings;
pub mod show;
pub mod train;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dw_base::exit;
use dw_base::program::{Clock, end_on_closed_pipe, log_to_stderr, print_message};
use dw_launch::abort::exit_now;
use dw_launch::{Topology, World};
use tch::Device;

use crate::device::{self, Choice, threads};
use crate::{Error, Result};

/// The text of `--version`. The libraries it names are opened in the order that training opens
/// them: an NCCL loaded before libtorch's CUDA libraries would be used instead of the one that
/// belongs to them.
fn version() -> String {
    #[cfg(feature = "mpi")]
    let mpi = dw_launch::mpi::library_version();
    #[cfg(not(feature = "mpi"))]
    let mpi = "not in this build";
    device::open(Choice::Auto);
    let cuda = match device::cuda::devices() {
        Ok(count) => format!("{count} devices"),
        Err(e) => e.to_string().lines().next().unwrap_or_default().to_owned(),
    };
    let nccl = match dw_launch::nccl::loaded() {
        Some(library) => library.to_string(),
        None => "not loaded (it comes with libtorch's CUDA half)".to_owned(),
    };
    let (version, revision, torch) =
        (env!("CARGO_PKG_VERSION"), env!("DW_GIT"), dw_torch::version());
    format!("{version} ({revision})\nlibtorch {torch}\nCUDA: {cuda}\nMPI: {mpi}\nNCCL: {nccl}")
}

/// Parses the command line. Ends the process for `--help`, `--version` and usage errors.
#[expect(clippy::print_stdout, reason = "the version is the result")]
pub fn parse<C: clap::Parser>() -> C {
    C::try_parse().unwrap_or_else(|e| {
        if e.kind() == clap::error::ErrorKind::DisplayVersion {
            println!("{} {}", C::command().get_name(), version());
            exit_now(exit::OK)
        }
        e.exit()
    })
}

/// What a program needs at its start.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    /// The device it will compute on.
    pub device: Choice,
    /// Whether USR1 and TERM request a checkpoint instead of ending the process.
    pub catch_signals: bool,
}

/// Runs a program as one rank of a job and ends the process. An error is reported once and ends
/// every rank. `main` stores the communicator in its second argument as soon as it exists.
pub fn run(start: Start, main: impl FnOnce(&Topology, &mut Option<Arc<World>>) -> Result<()>) -> ! {
    threads::wait_passively();
    // A program that only prints ends when its reader does, as in `dw-detect ... | head`. Training
    // continues without a reader, and so do jobs of several ranks: a rank that ended would be lost
    // to its peers.
    if !start.catch_signals && Topology::from_env().world_size == 1 {
        end_on_closed_pipe();
    }
    // Before any library is opened: until the handlers are installed, USR1 and TERM end the
    // process.
    let signals = if start.catch_signals {
        dw_launch::signals::listen()
            .map(drop)
            .map_err(Error::io("cannot handle", Path::new("signals")))
    } else {
        Ok(())
    };
    dw_launch::prepare();
    device::open(start.device);
    let topology = Topology::from_env();
    // Rank 0 logs for all ranks; the other ranks log only warnings and errors.
    if topology.rank == 0 {
        log_to_stderr("info", Clock::On);
    } else {
        log_to_stderr("warn", Clock::On);
    }
    if topology.world_size == 1 {
        let abort = |code| dw_launch::Collectives::abort(&dw_launch::Solo, code);
        dw_launch::abort::install_panic_hook(0, abort);
    }
    dw_launch::sigbus::install_handler(topology.rank);
    let mut world: Option<Arc<World>> = None;
    match signals.and_then(|()| main(&topology, &mut world)) {
        Ok(()) => finish(world, exit::OK),
        // All ranks stop together: each one leaves by itself, and no peer waits for it.
        Err(Error::Preempted(text)) => {
            if topology.rank == 0 {
                print_message(&text);
            }
            finish(world, exit::PREEMPTED)
        }
        Err(e) => fail(&e, &topology, world),
    }
}

/// Leaves the job and ends the process.
fn finish(world: Option<Arc<World>>, code: i32) -> ! {
    if let Some(world) = world {
        world.leave(code);
    }
    exit_now(code)
}

/// Reports an error and ends the job.
fn fail(e: &Error, topology: &Topology, world: Option<Arc<World>>) -> ! {
    if topology.rank != 0 {
        std::thread::sleep(report_delay(e, world.is_some()));
    }
    let rank =
        if topology.world_size > 1 { format!("[rank {}] ", topology.rank) } else { String::new() };
    print_message(&format!("{rank}error: {e}"));
    match world {
        Some(world) => world.abort(e.exit_code(), &e.to_string()),
        None => exit_now(e.exit_code()),
    }
}

/// How long a rank other than 0 waits before it reports an error. An error that every rank has is
/// reported by rank 0, whose end also ends the others within seconds. A file, memory or a device
/// can fail on one rank alone.
fn report_delay(e: &Error, joined: bool) -> Duration {
    Duration::from_secs(match e {
        Error::NotFinite(_) | Error::Usage(_) => 4,
        _ if !joined => 4,
        _ => 1,
    })
}

/// Selects this rank's device and sets libtorch's number of CPU threads to `num_threads`.
///
/// # Errors
/// CUDA was requested and is not available; the machine refuses that many threads.
pub fn device(choice: Choice, num_threads: usize, topology: &Topology) -> Result<Device> {
    let device = device::pick(choice, topology)?;
    threads::probe(num_threads)?;
    device::return_freed(device);
    tch::set_num_threads(num_threads as i32);
    dw_torch::flush_denormals();
    Ok(device)
}

/// Checks that a text about settings and data, `what` in messages, is the same on all ranks.
/// Collective.
///
/// # Errors
/// It differs from that of rank 0.
fn check_same_on_all_ranks(mine: &str, what: &'static str, world: &World) -> Result<()> {
    let first = world.broadcast_bytes(mine.as_bytes().to_vec(), what)?;
    if first == mine.as_bytes() {
        return Ok(());
    }
    let first = String::from_utf8_lossy(&first);
    Err(Error::Usage(format!(
        "rank {} and rank 0 have different {what}\nrank 0: {first}\nhere:   {mine}\n\
         hint: the work directory must be on storage that all nodes share, and data and \
         configuration be the same on all of them",
        world.rank()
    )))
}
