//! `dw-show`: pictures of predictions, of training and of label assignment.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use dw::app::show::{PredArgs, WeightingArgs, predictions, weights};
use dw::app::{self, Start};
use dw::device::Choice;
use dw::show;

const EXAMPLES: &str = "Examples:
  dw-show pred work/demo -o pred.png         newest checkpoint on its validation split
  dw-show pred work/demo --split train2017 -n 12 --score 0.3 -o train.png
  dw-show curves work/demo -o curves.png     losses and AP over steps
  dw-show weighting -o functions.png         weights by score and IoU under GFL, VFL and DW
  dw-show weighting work/demo --image 3 --box 0 -o maps.png
                                             weights of the points of an object";

/// Draw predictions, training curves and the weights of label assignment.
#[derive(Debug, Parser)]
#[command(name = "dw-show", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Images with predicted and true boxes
    Pred(PredArgs),
    /// Losses and AP over steps
    Curves {
        /// Work directory, or a metrics.jsonl
        run: PathBuf,
        /// Output file
        #[arg(short, long, value_name = "FILE.png")]
        out: PathBuf,
    },
    /// Positive and negative weights: of given scores and IoUs, or, with a checkpoint, of the
    /// points of an object
    Weighting(WeightingArgs),
}

fn main() {
    let cli: Cli = app::parse();
    app::run(Start { device: Choice::Cpu, catch_signals: false }, |_, _| match &cli.command {
        Command::Pred(args) => predictions(args),
        Command::Curves { run, out } => show::curves::draw(run, out),
        Command::Weighting(args) => weights(args),
    })
}
