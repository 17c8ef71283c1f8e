//! `dw-eval`: `coco` evaluates results files in this process. Everything else needs the network and
//! is run by `dw-eval-network`. Loading libtorch costs more time and memory than the metric itself,
//! so this program does not link it.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use clap::Parser;
use dw_base::{Error, program};
use dw_metric::cli::{self, CocoArgs, EXAMPLES};

/// Evaluate a results file against a ground-truth file, bit-identical to pycocotools
#[derive(Parser)]
#[command(name = "dw-eval coco", bin_name = "dw-eval coco", version, after_help = EXAMPLES,
          arg_required_else_help = true)]
struct Coco {
    #[command(flatten)]
    args: CocoArgs,
}

fn main() -> ExitCode {
    if std::env::args_os().nth(1).as_deref() != Some(OsStr::new("coco")) {
        return exec_network();
    }
    let coco = Coco::parse_from(std::env::args_os().skip(1));
    program::run(|| cli::run(&coco.args))
}

/// The program that evaluates networks.
const NETWORK: &str = "dw-eval-network";

/// Replaces this process by `dw-eval-network`, so that process id and rank stay the same. Returns
/// only if that fails.
fn exec_network() -> ExitCode {
    let sibling = std::env::current_exe().ok().and_then(|p| Some(p.parent()?.join(NETWORK)));
    let program = sibling.filter(|p| p.is_file()).unwrap_or_else(|| NETWORK.into());
    let e = Command::new(&program).args(std::env::args_os().skip(1)).exec();
    program::fail(&Error::Usage(format!(
        "cannot start {}: {e}\n\
         hint: dw-eval and {NETWORK} must be in the same folder (make build)",
        program.display()
    )))
}
