//! `dw-coco`: what `dw-eval coco` does, in a program that does not load libtorch.
#![expect(clippy::print_stderr, reason = "the program's own last words")]

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use dw_metric::cli::{Request, run};
use tracing_subscriber::fmt;

const EXAMPLES: &str = "Examples:
  dw-coco --gt instances_val2017.json --dt results.json
  dw-coco --gt gt.json --dt dt.json --json --max-dets 10,300
  dw-coco --gt gt.json --dt dt.json --per-class --iou-thresholds 0.5:0.9:0.1 --area-ranges tiny:0..256,rest:256..inf

Exit codes: 0 done, 2 a mistake in the command, 3 bad data";

/// A results file against a ground-truth file, with pycocotools' numbers to the last bit.
#[derive(Parser)]
#[command(name = "dw-coco", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    request: Request,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // `dw-coco --per-class | head` ends quietly.
    // SAFETY: sets a signal's default action before any thread starts.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
    fmt().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).with_target(false).without_time().init();
    match run(&cli.request) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(e.exit_code())
        }
    }
}
