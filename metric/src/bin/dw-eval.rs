//! `dw-eval`: the metric on files here, a network on a split by `dw-detect` beside it. Loading libtorch takes longer and more
//! memory than the whole metric does, so this program does not.
#![expect(clippy::print_stderr, reason = "a program that cannot be started has no other output")]

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use clap::Parser;
use dw_metric::cli::{EXAMPLES, Request, run};
use tracing_subscriber::fmt;

/// A results file against a ground-truth file, with pycocotools' numbers to the last bit.
#[derive(Parser)]
#[command(name = "dw-eval coco", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Coco {
    #[command(flatten)]
    request: Request,
}

fn main() -> ExitCode {
    if std::env::args_os().nth(1).as_deref() != Some(OsStr::new("coco")) {
        return network();
    }
    let cli = Coco::parse_from(std::env::args_os().skip(1));
    // `dw-eval coco --per-class | head` ends quietly.
    // SAFETY: sets a signal's default action before any thread starts.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
    fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
    match run(&cli.request) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            dw_base::text::print_error(&e);
            ExitCode::from(e.exit_code())
        }
    }
}

/// Becomes `dw-detect`, the process and its place in a job being the same.
fn network() -> ExitCode {
    let beside = std::env::current_exe().ok().and_then(|p| Some(p.parent()?.join("dw-detect")));
    let program = beside.filter(|p| p.is_file()).unwrap_or_else(|| "dw-detect".into());
    let e = Command::new(&program).args(std::env::args_os().skip(1)).exec();
    eprintln!(
        "error: cannot start {}: {e}\nhint: dw-eval and dw-detect belong into one folder (make build)",
        program.display()
    );
    ExitCode::from(2)
}
