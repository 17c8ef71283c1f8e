//! `dw-eval-network`: the part of `dw-eval` that needs a network and libtorch. `dw-eval` executes
//! it; its help is that of `dw-eval` as a whole.

use clap::{Parser, Subcommand};
use dw::app::eval::{EvalArgs, run};
use dw::app::{self, Start};
use dw::device::Choice;
use dw_metric::cli;

const EXAMPLES: &str = "Examples:
  dw-eval work/dw_r50_fpn_1x              newest checkpoint of a run on its validation split
  mpirun -n 8 dw-eval work/a/checkpoints/step-00090000 --dt-out results.json
  dw-eval work/a --report page            HTML report: page/index.html
  dw-eval --compare work/a work/b --report page
  dw-eval work/a --split test-dev2017 --dt-out detections_test-dev2017_a_results.json
  dw-eval epoch_12.pth --config dw_r50_fpn_1x --data coco/shards
                                          a weight file, mmdetection's included
  dw-eval coco --gt instances_val2017.json --dt results.json --json

Exit codes: 0 success, 2 usage error, 3 bad data, 4 a peer was lost or a GPU failed, 5 out of memory
or threads, 70 a bug";

/// Evaluate a detector with COCO's metric.
#[derive(Debug, Parser)]
#[command(name = "dw-eval", bin_name = "dw-eval", version, after_help = EXAMPLES,
          args_conflicts_with_subcommands = true, subcommand_negates_reqs = true,
          arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    args: EvalArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Evaluate a results file against a ground-truth file, with the numbers of pycocotools
    #[command(after_help = cli::EXAMPLES)]
    Coco(cli::CocoArgs),
}

fn main() {
    let Cli { command, args } = app::parse();
    let device = if command.is_some() { Choice::Cpu } else { args.device };
    app::run(Start { device, catch_signals: false }, |topology, world| match command {
        Some(Command::Coco(args)) => cli::run(&args),
        None => run(&args, topology, world),
    })
}
