//! Helpers for the tests of the binaries: a small synthetic data set, processes, rows of metrics.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod doubling;
pub mod network;
pub mod onnx;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use tempfile::TempDir;

/// Path of a binary of this workspace. `DW_BIN` names another folder, for a machine without the
/// build.
pub fn bin(name: &str) -> PathBuf {
    match std::env::var_os("DW_BIN") {
        Some(folder) => Path::new(&folder).join(name),
        None => Path::new(env!("CARGO_BIN_EXE_dw-train")).with_file_name(name),
    }
}

/// A temporary folder with a packed synthetic data set; work directories are created in it. The
/// folder is removed when the value is dropped.
pub struct Sandbox {
    dir: TempDir,
}

impl Sandbox {
    /// 14 training and 5 validation images.
    pub fn new() -> Self {
        Self::with_images(14, 5)
    }

    pub fn with_images(train: usize, val: usize) -> Self {
        let sandbox = Self { dir: tempfile::tempdir().unwrap() };
        let coco = sandbox.path("coco");
        run(Command::new(bin("dw-pack"))
            .args(["synth", &coco])
            .args(["--images", &train.to_string(), "--val", &val.to_string()])
            .args(["--seed", "3", "--classes", "3", "--side", "128"]));
        run(Command::new(bin("dw-pack")).arg(&coco));
        sandbox
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// Folder of the packed data set.
    pub fn shards(&self) -> String {
        self.path("coco/shards")
    }

    /// Arguments of `dw-train` for the smoke configuration on the CPU in work directory `work`.
    /// `sets`: values of `--set`.
    pub fn train_args(&self, work: &str, sets: &[&str]) -> Vec<String> {
        self.train_args_on("cpu", work, sets)
    }

    /// As [`Sandbox::train_args`], with a value of `--device`.
    pub fn train_args_on(&self, device: &str, work: &str, sets: &[&str]) -> Vec<String> {
        let (shards, work) = (self.shards(), self.path(work));
        let args = ["smoke", "--device", device, "--data", &shards, "--work-dir", &work];
        let sets = sets.iter().flat_map(|set| ["--set", *set]);
        args.into_iter().chain(sets).map(str::to_owned).collect()
    }

    /// Trains on `ranks` processes (0: without mpirun); the run must succeed.
    pub fn train(&self, ranks: usize, work: &str, sets: &[&str]) {
        run(launch(ranks, "dw-train").args(self.train_args(work, sets)));
    }

    /// All rows of `metrics.jsonl`.
    pub fn rows(&self, work: &str) -> Vec<Map<String, Value>> {
        let text = std::fs::read_to_string(self.path(work) + "/metrics.jsonl").unwrap();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    /// The row of each step; the last one where a step was repeated.
    pub fn steps(&self, work: &str) -> Vec<Map<String, Value>> {
        let mut steps = std::collections::BTreeMap::new();
        for row in self.rows(work).into_iter().filter(|r| r.contains_key("loss")) {
            steps.insert(row["step"].as_u64().unwrap(), row);
        }
        steps.into_values().collect()
    }

    /// Losses of all steps as JSON text, which keeps every bit.
    pub fn losses(&self, work: &str) -> Vec<String> {
        self.steps(work).iter().map(|r| r["loss"].to_string()).collect()
    }

    /// Complete rows of `metrics.jsonl` while a run may be writing it; none before the file exists.
    pub fn rows_so_far(&self, work: &str) -> Vec<Map<String, Value>> {
        let text = std::fs::read_to_string(self.path(work) + "/metrics.jsonl").unwrap_or_default();
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        complete.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    /// The number of the start (from 1) that wrote the last complete row; 0 without rows.
    pub fn last_attempt(&self, work: &str) -> u64 {
        self.rows_so_far(work).last().map_or(0, |row| row["attempt"].as_u64().unwrap())
    }

    /// Checkpoint folders, the oldest first.
    pub fn checkpoints(&self, work: &str) -> Vec<PathBuf> {
        files_in(&(self.path(work) + "/checkpoints"), "")
    }

    /// Step of the newest checkpoint that is in place; 0 without any.
    pub fn newest_step(&self, work: &str) -> usize {
        let names =
            std::fs::read_dir(self.path(work) + "/checkpoints").into_iter().flatten().flatten();
        names
            .filter_map(|e| e.file_name().to_str()?.strip_prefix("step-")?.parse().ok())
            .max()
            .unwrap_or(0)
    }
}

/// A command without those variables of the caller that programs of this project read: tests may be
/// started inside a job of SLURM, or with a log filter.
fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut c = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("SLURM_") || text.starts_with("DW_") || text == "OMP_NUM_THREADS" {
            c.env_remove(name);
        }
    }
    c
}

/// The command that starts a binary on `ranks` processes; 0: without mpirun.
pub fn launch(ranks: usize, name: &str) -> Command {
    if ranks == 0 {
        return command(bin(name));
    }
    let mut c = command("mpirun");
    c.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    c.args(["-n", &ranks.to_string(), "--oversubscribe", "--bind-to", "none"]).arg(bin(name));
    c
}

/// `dw-launch OPTIONS -n RANKS -- NAME`; arguments of the program may be appended.
pub fn dw_launch(ranks: usize, options: &[&str], name: &str) -> Command {
    let mut c = command(bin("dw-launch"));
    c.args(options).args(["-n", &ranks.to_string(), "--", name]);
    c
}

/// A running process whose standard error is collected. Dropped before it has ended, as by a failed
/// assertion, it is killed with all its descendants, which would disturb other tests.
pub struct Job {
    child: Child,
    stderr: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Drop for Job {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
            return;
        }
        let mut family = vec![self.child.id().to_string()];
        let mut at = 0;
        while at < family.len() {
            let children = Command::new("pgrep").args(["-P", &family[at]]).output();
            let children = children.map(|out| out.stdout).unwrap_or_default();
            family.extend(String::from_utf8_lossy(&children).lines().map(str::to_owned));
            at += 1;
        }
        let _ = Command::new("kill").arg("-KILL").args(&family).output();
        let _ = self.child.wait();
    }
}

impl Job {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let lines = BufReader::new(child.stderr.take().unwrap()).split(b'\n');
        let stderr = Arc::new(Mutex::new(String::new()));
        let collected = stderr.clone();
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                *collected.lock().unwrap() += &(String::from_utf8_lossy(&line).into_owned() + "\n");
            }
        });
        Self { child, stderr, reader: Some(reader) }
    }

    /// Environment of the process, one `NAME=VALUE` per line.
    pub fn environment(&self) -> String {
        let bytes = std::fs::read(format!("/proc/{}/environ", self.child.id())).unwrap();
        String::from_utf8_lossy(&bytes).replace('\0', "\n")
    }

    /// Standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// Waits until a condition holds; fails after two minutes. `what` names the condition.
    ///
    /// Conditions look at files rather than at the log, whose wording may change.
    pub fn wait_until(&self, what: &str, condition: impl Fn() -> bool) {
        let began = Instant::now();
        while !condition() {
            let waited = began.elapsed();
            assert!(waited < Duration::from_mins(2), "timeout: {what}: {}", self.stderr());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn signal(&self, name: &str) {
        run(Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]));
    }

    /// Waits for the process to exit; returns exit code and standard error.
    pub fn wait(mut self, timeout: Duration) -> (Option<i32>, String) {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            let in_time = began.elapsed() <= timeout;
            assert!(in_time, "the job did not exit within {timeout:?}: {}", self.stderr());
            std::thread::sleep(Duration::from_millis(20));
        };
        self.reader.take().unwrap().join().unwrap();
        let text = self.stderr.lock().unwrap().clone();
        (status.code(), text)
    }
}

/// Ids of the processes whose command line matches `text`.
pub fn processes(text: &str) -> Vec<String> {
    let out = Command::new("pgrep").args(["-f", text]).output().unwrap();
    String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect()
}

/// The process of a rank of Open MPI among those whose command line matches `text`.
pub fn process_of_rank(text: &str, rank: usize) -> Option<String> {
    let variable = format!("OMPI_COMM_WORLD_RANK={rank}");
    processes(text).into_iter().find(|pid| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|b| *b == 0).any(|v| v == variable.as_bytes())
    })
}

/// A number of repetitions from the environment: a few in CI, many in `make soak`.
pub fn rounds(variable: &str, default: usize) -> usize {
    std::env::var(variable)
        .ok()
        .map_or(default, |v| v.parse().unwrap_or_else(|e| panic!("{variable}={v}: {e}")))
}

/// Runs a command that must succeed; returns its output.
pub fn output(command: &mut Command) -> Output {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(out.status.success(), "{command:?}: {}\n{}", out.status, stderr(&out));
    out
}

/// Runs a command that must succeed; returns standard output.
pub fn run(command: &mut Command) -> String {
    String::from_utf8(output(command).stdout).unwrap()
}

/// Runs a command that must fail with this exit code and an `error: ` message, without a panic;
/// returns standard error.
pub fn run_failing(command: &mut Command, code: i32) -> String {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = stderr(&out);
    assert_eq!(out.status.code(), Some(code), "{command:?}: {text}");
    assert!(text.contains("error: ") && !text.contains("panicked"), "{text}");
    text
}

pub fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// Asserts that a text contains every key. Keys are names of options and fields, paths and values,
/// not sentences of messages.
pub fn assert_contains(text: &str, keys: &[&str]) {
    for key in keys {
        assert!(text.contains(key), "expected `{key}` in: {text}");
    }
}

/// Asserts that one line of a text contains every key.
pub fn assert_line_contains(text: &str, keys: &[&str]) {
    let found = text.lines().any(|line| keys.iter().all(|key| line.contains(key)));
    assert!(found, "expected a line with {keys:?} in: {text}");
}

/// Runs a command that must fail with this exit code and an error that contains every key.
pub fn assert_fails(command: &mut Command, code: i32, keys: &[&str]) {
    assert_contains(&run_failing(command, code), keys);
}

/// The part of a log that begins with the last line of an error (`error: ` or `[rank N] error: `).
pub fn last_error(log: &str) -> &str {
    let begins = |at: &usize| {
        let line = log[..*at].rsplit('\n').next().unwrap_or_default();
        line.is_empty() || (line.starts_with('[') && line.ends_with("] "))
    };
    let starts = log.match_indices("error: ").map(|(at, _)| at);
    starts.filter(begins).last().map_or("", |at| &log[at..])
}

/// Whether a text contains `word` as a whole word, not within a longer number or name.
pub fn has_word(text: &str, word: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric()).any(|w| w == word)
}

/// Changes one bit in the middle of a file.
pub fn flip_bit(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

/// Entries of a folder whose names end with `suffix`, sorted.
pub fn files_in(dir: &str, suffix: &str) -> Vec<PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.to_string_lossy().ends_with(suffix))
        .collect();
    found.sort();
    found
}
