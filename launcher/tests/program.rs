//! `dw-launch` as a program, with commands other than training.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

/// Value of `RUST_MIN_STACK` with which no thread starts, also for root.
const NO_STACK: &str = "140737488355328";

fn program(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dw-launch"));
    command.current_dir(dir).args(args);
    for name in [
        "SLURM_JOB_ID",
        "SLURM_JOB_CPUS_PER_NODE",
        "SLURM_GPUS_ON_NODE",
        "SLURM_GPUS_PER_NODE",
        "CUDA_VISIBLE_DEVICES",
        "DW_BOARD",
    ] {
        command.env_remove(name);
    }
    command
}

/// PATH with another folder before the others.
fn path_with(dir: &Path) -> String {
    format!("{}:{}", dir.display(), std::env::var("PATH").unwrap())
}

/// Checks the exit code and parts of standard error, which is returned.
fn assert_exit(out: &Output, code: i32, parts: &[&str]) -> String {
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{text}");
    for part in parts {
        assert!(text.contains(part), "expected `{part}` in: {text}");
    }
    text
}

#[test]
fn edited_batch_script_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dw-a.sbatch");
    let submit = |more: &[&str]| {
        let first = ["--slurm", "-n", "2", "--job-name", "a", "--no-submit"];
        program(dir.path(), &[&first, more, &["--", "true"]].concat()).output().unwrap()
    };
    assert_exit(&submit(&[]), 0, &[]);
    let written = std::fs::read_to_string(&path).unwrap();
    assert_exit(&submit(&[]), 0, &[]);
    let edited = written.replace("\nrun ", "\nmodule load cuda\nrun ");
    std::fs::write(&path, &edited).unwrap();
    assert_exit(&submit(&[]), 2, &["dw-a.sbatch", "--script", "--overwrite"]);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), edited);
    assert_exit(&submit(&["--script", "b.sbatch"]), 0, &[]);
    assert_exit(&submit(&["--overwrite"]), 0, &[]);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), written);
    assert_exit(&submit(&["--script", "."]), 2, &["--script ."]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file is left");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o600, 0o600);
}

/// In the job, PATH is that of the shell that submits it.
#[test]
fn batch_script_runs_this_dw_launch() {
    let dir = tempfile::tempdir().unwrap();
    let exe = Path::new(env!("CARGO_BIN_EXE_dw-launch")).canonicalize().unwrap();
    let run = |path: &str| {
        let args = ["--slurm", "-n", "2", "--dry-run", "--", "true"];
        let out = program(dir.path(), &args).env("PATH", path).output().unwrap();
        assert_exit(&out, 0, &[]);
        let text = String::from_utf8(out.stdout).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix("run ")).unwrap();
        shlex::split(line).unwrap().remove(0)
    };
    assert_eq!(run("/usr/bin:/bin"), exe.to_str().unwrap());
    assert_eq!(run(&path_with(exe.parent().unwrap())), "dw-launch");
    let other = dir.path().join("dw-launch");
    std::fs::write(&other, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(run(&path_with(dir.path())), exe.to_str().unwrap(), "PATH has another one");
}

#[test]
fn default_number_of_ranks_is_shown_with_its_source() {
    let dir = tempfile::tempdir().unwrap();
    let smi = dir.path().join("nvidia-smi");
    let start = |script: &str, variables: &[(&str, &str)]| {
        std::fs::write(&smi, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&smi, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = program(dir.path(), &["--dry-run", "--", "true"]);
        command.env("PATH", path_with(dir.path())).envs(variables.iter().copied());
        let out = command.output().unwrap();
        let line = String::from_utf8_lossy(&out.stdout).into_owned();
        let ranks = line.split("mpirun -n ").nth(1).and_then(|l| l.split(' ').next()).unwrap();
        (ranks.to_owned(), assert_exit(&out, 0, &[]))
    };
    // One of eight GPUs is lost.
    let seven = "for i in 0 1 2 3 4 5 6; do echo \"GPU $i: NVIDIA\"; done; exit 15";
    for (script, variables, ranks, line) in [
        (seven, &[][..], "7", "7 ranks (from GPUs in nvidia-smi, which failed: 7 per node)"),
        (seven, &[("CUDA_VISIBLE_DEVICES", "0,1")], "2", "2 ranks (from CUDA_VISIBLE_DEVICES"),
        ("exit 9", &[("SLURM_GPUS_ON_NODE", "8")], "8", "8 ranks (from SLURM_GPUS_ON_NODE"),
        ("exit 9", &[("SLURM_GPUS_PER_NODE", "a100:4")], "4", "4 ranks (from SLURM_GPUS_PER_NODE"),
        ("exit 9", &[("CUDA_VISIBLE_DEVICES", "")], "1", "1 rank (from the nodes, as no GPU"),
    ] {
        let (started, text) = start(script, variables);
        assert!(started == ranks && text.contains(&format!("dw-launch: {line}")), "{text}");
    }
}

#[test]
fn threads_beyond_the_cores_are_a_warning_or_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let cores = std::thread::available_parallelism().unwrap().get();
    let marker = dir.path().join("started");
    let start = |threads: usize, program_and: &[&str]| {
        let threads = threads.to_string();
        let first = ["-n", "1", "--threads", &threads];
        program(dir.path(), &[&first, program_and].concat()).output().unwrap()
    };
    let touch = ["--", "touch", marker.to_str().unwrap()];
    assert_exit(&start(4 * cores + 1, &touch), 2, &["--threads", "hint:"]);
    assert!(!marker.exists(), "the program was started");
    let dry = ["--dry-run", "--", "true"];
    assert_exit(&start(2 * cores, &dry), 0, &["WARN", "--threads"]);
    assert!(!assert_exit(&start(1, &dry), 0, &[]).contains("WARN"));
}

/// If the threads that read the ranks' output cannot start, the ranks must not start either.
#[test]
fn missing_thread_for_the_output_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let marker = dir.path().join("started");
    let args = ["-n", "1", "--", "touch", marker.to_str().unwrap()];
    let out = program(dir.path(), &args).env("RUST_MIN_STACK", NO_STACK).output().unwrap();
    assert_exit(&out, 5, &["`dw-output`", "hint:"]);
    assert!(!marker.exists(), "the program was started");
}

#[test]
fn control_characters_in_errors_are_escaped() {
    let dir = tempfile::tempdir().unwrap();
    let name = "a\u{1b}[2J\u{9b}31m";
    std::fs::write(dir.path().join(name), "{}\n").unwrap();
    let plan = ["plan", "--step-ms", "100", "--measured", name];
    let out = program(dir.path(), &plan).output().unwrap();
    let text = assert_exit(&out, 2, &[r"a\u{1b}[2J\u{9b}31m"]);
    assert!(!text.contains(['\u{1b}', '\u{9b}']), "{text:?}");
}

#[test]
fn invalid_options_are_usage_errors() {
    let dir = tempfile::tempdir().unwrap();
    for delay in ["nan", "-1", "inf"] {
        let option = format!("--restart-delay={delay}");
        let out = program(dir.path(), &["-n", "1", &option, "--", "true"]).output().unwrap();
        assert_exit(&out, 2, &["--restart-delay"]);
    }
    let measured = ["plan", "--step-ms", "1", "--measured", "/dev/zero"];
    let out = program(dir.path(), &measured).output().unwrap();
    assert_exit(&out, 2, &["/dev/zero", "16777216 bytes"]);
}
