//! `dw-launch` as a program, with commands that are no training.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

/// `RUST_MIN_STACK` with which no thread starts, for root, too.
const NO_STACK: &str = "140737488355328";

fn program(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dw-launch"));
    command.current_dir(dir).args(args);
    for name in ["SLURM_JOB_ID", "SLURM_JOB_CPUS_PER_NODE", "DW_BOARD"] {
        command.env_remove(name);
    }
    command
}

fn fails(out: &Output, code: i32, words: &[&str]) -> String {
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{text}");
    for word in words {
        assert!(text.contains(word), "expected `{word}` in: {text}");
    }
    text
}

#[test]
fn an_edited_batch_script_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dw-a.sbatch");
    let submit = |more: &[&str]| {
        let first = ["--slurm", "-n", "2", "--job-name", "a", "--no-submit"];
        program(dir.path(), &[&first, more, &["--", "true"]].concat()).output().unwrap()
    };
    fails(&submit(&[]), 0, &[]);
    let written = std::fs::read_to_string(&path).unwrap();
    fails(&submit(&[]), 0, &[]);
    let edited = written.replace("run dw-launch", "module load cuda\nrun dw-launch");
    std::fs::write(&path, &edited).unwrap();
    fails(&submit(&[]), 2, &["dw-a.sbatch exists with other contents", "--script", "--overwrite"]);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), edited);
    fails(&submit(&["--script", "b.sbatch"]), 0, &[]);
    fails(&submit(&["--overwrite"]), 0, &[]);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), written);
    fails(&submit(&["--script", "."]), 2, &["no regular file"]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else is left");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o600, 0o600);
}

#[test]
fn threads_beyond_the_cores() {
    let dir = tempfile::tempdir().unwrap();
    let cores = std::thread::available_parallelism().unwrap().get();
    let marker = dir.path().join("started");
    let start = |threads: usize, program_and: &[&str]| {
        let threads = threads.to_string();
        let first = ["-n", "1", "--threads", &threads];
        program(dir.path(), &[&first, program_and].concat()).output().unwrap()
    };
    let touch = ["--", "touch", marker.to_str().unwrap()];
    fails(&start(4 * cores + 1, &touch), 2, &["--threads", "at most 4 times", "hint:"]);
    assert!(!marker.exists(), "nothing is started");
    let dry = ["--dry-run", "--", "true"];
    fails(&start(2 * cores, &dry), 0, &["WARN", "share"]);
    assert!(!fails(&start(1, &dry), 0, &[]).contains("WARN"));
}

/// The threads that read the ranks' output do not start: the ranks must not, either.
#[test]
fn no_thread_for_the_output_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let marker = dir.path().join("started");
    let args = ["-n", "1", "--", "touch", marker.to_str().unwrap()];
    let out = program(dir.path(), &args).env("RUST_MIN_STACK", NO_STACK).output().unwrap();
    fails(&out, 5, &["cannot start the thread `dw-output`", "hint:"]);
    assert!(!marker.exists(), "nothing is started");
}

#[test]
fn errors_do_not_control_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let name = "a\u{1b}[2J\u{9b}31m";
    std::fs::write(dir.path().join(name), "{}\n").unwrap();
    let plan = ["plan", "--step-ms", "100", "--measured", name];
    let text = fails(&program(dir.path(), &plan).output().unwrap(), 2, &[r"a\u{1b}[2J\u{9b}31m"]);
    assert!(!text.contains(['\u{1b}', '\u{9b}']), "{text:?}");
}

#[test]
fn options_that_mean_nothing_are_no_panic() {
    let dir = tempfile::tempdir().unwrap();
    for delay in ["nan", "-1", "inf"] {
        let option = format!("--restart-delay={delay}");
        let out = program(dir.path(), &["-n", "1", &option, "--", "true"]).output().unwrap();
        fails(&out, 2, &["expected a number of seconds"]);
    }
    let measured = ["plan", "--step-ms", "1", "--measured", "/dev/zero"];
    fails(&program(dir.path(), &measured).output().unwrap(), 2, &["at most 16777216 bytes"]);
}
