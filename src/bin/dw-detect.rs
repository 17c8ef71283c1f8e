//! `dw-detect`: detections on any pictures.

use clap::Parser;
use dw::app::detect::{DetectArgs, run};
use dw::app::{self, Start};

const EXAMPLES: &str = "Examples:
  dw-detect work/a bus.jpg                    one line: size, classes and scores
  dw-detect work/a photos/ -o drawn           pictures with boxes, and drawn/detections.jsonl
  find photos -name '*.jpg' | dw-detect work/a - --json --score 0
  mpirun -n 8 dw-detect work/a photos/ --json >detections.jsonl
  dw-detect epoch_12.pth bus.jpg --config dw_r50_fpn_1x --data coco/shards
                                              a weight file without class names

Each line of JSON has file, width, height and detections: bbox (x, y, width, height in pixels of the
picture), score, category and category_id.

A picture that cannot be read is left out and named at the end, with exit code 3. Pictures in DIR
are named as a.png for a.jpg, or a.jpg.png if that is taken.

Exit codes: 0 success, 2 usage error, 3 bad data or a picture that cannot be read, 4 a peer was lost
or a GPU failed, 5 out of memory or threads, 70 a bug";

/// Detect objects on pictures.
#[derive(Debug, Parser)]
#[command(name = "dw-detect", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    args: DetectArgs,
}

fn main() {
    let Cli { args } = app::parse();
    app::run(Start { device: args.device, catch_signals: false }, |topology, world| {
        run(&args, topology, world)
    })
}
