//! `dw-eval`: COCO's 12 numbers of a checkpoint, or of a results file.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use dw::app;
use dw::eval::command::{Request, checkpoint, json_files};

const EXAMPLES: &str = "Examples:
  dw-eval work/dw_r50_fpn_1x                               the newest checkpoint of a run on its validation split
  mpirun -n 8 dw-eval work/a/checkpoints/step-00090000 --dt-out results.json
  dw-eval epoch_12.pth --config dw_r50_fpn_1x --data coco/shards    a weight file, also mmdetection's
  dw-eval coco --gt instances_val2017.json --dt results.json --json

Exit codes: 0 done, 2 a mistake in the command, 3 bad data, 4 a peer was lost";

/// Evaluate a detector with COCO's metric.
#[derive(Debug, Parser)]
#[command(name = "dw-eval", version = app::VERSION.as_str(), after_help = EXAMPLES,
          args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Request,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A results file against a ground-truth file, as pycocotools does it
    Coco {
        /// Ground truth (instances_*.json)
        #[arg(long)]
        gt: PathBuf,
        /// Results
        #[arg(long)]
        dt: PathBuf,
        /// Numbers as JSON, with AP of each class
        #[arg(long)]
        json: bool,
        /// AP of each class, too
        #[arg(long)]
        per_class: bool,
        /// Count matches with annotation id 0, which pycocotools loses
        #[arg(long)]
        count_id_zero: bool,
    },
}

fn main() -> ExitCode {
    let Cli { command, run } = Cli::parse();
    app::run(|topology, world| match command {
        Some(Command::Coco { gt, dt, json, per_class, count_id_zero }) => json_files(&gt, &dt, json, per_class, count_id_zero),
        None => checkpoint(&run, topology, world),
    })
}
