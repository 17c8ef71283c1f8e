//! `dw-show`: pictures of predictions and of training.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use dw::app::show::{PredArgs, predictions};
use dw::app::{self, Start};
use dw::device::Choice;
use dw::show;

const EXAMPLES: &str = "Examples:
  dw-show pred work/demo -o pred.png         newest checkpoint on its validation split
  dw-show pred work/demo --split train2017 -n 12 --score 0.3 -o train.png
  dw-show curves work/demo -o curves.png     losses and AP over steps";

/// Draw predictions and training curves.
#[derive(Debug, Parser)]
#[command(name = "dw-show", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Images with predicted and true boxes
    Pred {
        /// Checkpoint folder, work directory, or weight file
        checkpoint: PathBuf,
        /// Configuration of a weight file
        #[arg(long)]
        config: Option<String>,
        /// Folder of shards [default: the run's]
        #[arg(long, value_name = "OUT")]
        data: Option<PathBuf>,
        /// Split [default: the run's data.val_split]
        #[arg(long)]
        split: Option<String>,
        /// Number of images
        #[arg(short = 'n', long, default_value_t = 9,
              value_parser = clap::value_parser!(u16).range(1..=100))]
        count: u16,
        /// Smallest score to draw
        #[arg(long, default_value_t = 0.3)]
        score: f32,
        /// Output file
        #[arg(short, long, value_name = "FILE.png")]
        out: PathBuf,
    },
    /// Losses and AP over steps
    Curves {
        /// Work directory, or a metrics.jsonl
        run: PathBuf,
        /// Output file
        #[arg(short, long, value_name = "FILE.png")]
        out: PathBuf,
    },
}

fn main() {
    let cli: Cli = app::parse();
    app::run(Start { device: Choice::Cpu, catch_signals: false }, |_, _| match cli.command {
        Command::Pred { checkpoint, config, data, split, count, score, out } => {
            let count = count.into();
            predictions(&PredArgs { checkpoint, config, data, split, count, score }, &out)
        }
        Command::Curves { run, out } => show::curves::draw(&run, &out),
    })
}
