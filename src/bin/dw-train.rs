//! `dw-train`: trains a detector, on all ranks under mpirun or srun.

use std::path::PathBuf;

use clap::Parser;
use dw::app::train::{Resume, TrainArgs, train};
use dw::app::{self, Start};
use dw::device::Choice;

const EXAMPLES: &str = "Examples:
  dw-train                                          dw_r50_fpn_1x on coco/shards, one process
  mpirun -n 8 dw-train dw_r50_fpn_1x                eight ranks on this node
  dw-train --set train.lr=0.02 --set model.refine=false
  dw-train my.toml --data /fast/shards --work-dir runs/a --resume auto
  dw-train dw_r101_fpn_mstrain_2x --dry-run         print the resolved settings

Exit codes: 0 success, 2 usage error, 3 bad data, 4 a peer was lost or a GPU failed, 5 out of memory
or threads, 70 a bug, 75 stopped by a signal after a checkpoint (the same command continues)";

/// Train a dense object detector with dual weighting label assignment.
#[derive(Debug, Parser)]
#[command(name = "dw-train", version, after_help = EXAMPLES)]
struct Cli {
    /// Built-in name or path of a TOML file
    #[arg(default_value = "dw_r50_fpn_1x")]
    config: String,
    /// Set a configuration key, for example train.lr=0.02 (repeatable)
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    set: Vec<String>,
    /// Folder of shards (`data.shards`)
    #[arg(long, value_name = "OUT")]
    data: Option<PathBuf>,
    /// Folder of metrics and checkpoints [default: work/NAME]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Checkpoint to resume from: auto (the newest of the work directory), none, or a path
    #[arg(long, default_value = "auto", value_name = "auto|none|PATH")]
    resume: Resume,
    /// Resume although settings that determine the result differ from the checkpoint's
    #[arg(long)]
    resume_with_changes: bool,
    /// Starting weights (`model.init`): imagenet, random, or a file
    #[arg(long, value_name = "imagenet|random|FILE")]
    init: Option<String>,
    /// Device
    #[arg(long, value_enum, default_value = "auto")]
    device: Choice,
    /// Print the resolved settings and exit
    #[arg(long)]
    dry_run: bool,
}

fn main() {
    let cli: Cli = app::parse();
    let (device, trains) = (cli.device, !cli.dry_run);
    let args = TrainArgs {
        config: cli.config,
        sets: cli.set,
        data: cli.data,
        init: cli.init,
        work_dir: cli.work_dir,
        resume: cli.resume,
        with_changes: cli.resume_with_changes,
        device,
        dry_run: cli.dry_run,
    };
    app::run(Start { device, catch_signals: trains }, |topology, world| {
        train(&args, topology, world)
    })
}
