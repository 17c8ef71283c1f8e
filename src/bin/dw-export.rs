//! `dw-export`: writes a checkpoint as an ONNX model.

use clap::Parser;
use dw::app::export::{ExportArgs, run};
use dw::app::{self, Start};
use dw::device::Choice;

const EXAMPLES: &str = "Examples:
  dw-export work/demo demo.onnx                       scores and boxes, any size
  dw-export work/demo demo.onnx --size 800 1344       fixed size, as accelerators need it
  dw-export work/demo demo.onnx --nms                 detections
  dw-export work/demo demo.onnx --nms --set eval.score_threshold=0.3

docs/deploy.md describes inputs, outputs and metadata, with programs that run the model.";

/// Write a checkpoint as an ONNX model.
#[derive(Debug, Parser)]
#[command(name = "dw-export", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    args: ExportArgs,
}

fn main() {
    let cli: Cli = app::parse();
    app::run(Start { device: Choice::Cpu, catch_signals: false }, |_, _| run(&cli.args))
}
