//! `dw-eval`: COCO's 12 numbers of a checkpoint, or of a results file.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use dw::device::Choice;
use dw::eval::command::{Request, checkpoint, json_files};
use dw::{Error, app};

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
    run: RunArgs,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Checkpoint folder, work directory (its newest checkpoint), or weight file
    #[arg(required = true)]
    checkpoint: Option<PathBuf>,
    /// Configuration that a weight file belongs to
    #[arg(long)]
    config: Option<String>,
    /// Set one key, as eval.nms_iou=0.5 (may be repeated)
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    set: Vec<String>,
    /// Folder of shards [default: the run's]
    #[arg(long, value_name = "OUT")]
    data: Option<PathBuf>,
    /// Split [default: the run's data.val_split]
    #[arg(long)]
    split: Option<String>,
    /// Write the detections in COCO's results format
    #[arg(long, value_name = "FILE")]
    dt_out: Option<PathBuf>,
    /// Numbers as JSON
    #[arg(long)]
    json: bool,
    /// Device
    #[arg(long, value_enum, default_value = "auto")]
    device: Choice,
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
    let Cli { command, run: r } = Cli::parse();
    app::run(|topology, world| match command {
        Some(Command::Coco { gt, dt, json, per_class, count_id_zero }) => json_files(&gt, &dt, json, per_class, count_id_zero),
        None => {
            let path = r.checkpoint.ok_or_else(|| Error::Usage("expected a checkpoint".into()))?;
            let (config, sets) = (r.config, r.set);
            let request =
                Request { checkpoint: path, config, sets, data: r.data, split: r.split, dt_out: r.dt_out, json: r.json, device: r.device };
            checkpoint(&request, topology, world)
        }
    })
}
