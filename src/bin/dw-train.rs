//! `dw-train`: trains a detector, on all ranks under mpirun or srun.

use clap::Parser;
use dw::app::train::{TrainArgs, train};
use dw::app::{self, Start};

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
    #[command(flatten)]
    args: TrainArgs,
}

fn main() {
    let Cli { args } = app::parse();
    let (device, trains) = (args.device, !args.dry_run);
    app::run(Start { device, catch_signals: trains }, |topology, world| {
        train(&args, topology, world)
    })
}
