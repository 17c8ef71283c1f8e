//! What the tests of the binaries share: a small drawn data set, processes, rows of metrics.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod doubling;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use tempfile::TempDir;

/// A binary of this workspace; from the folder `DW_BIN` where that is set (on a machine without the build).
pub fn bin(name: &str) -> PathBuf {
    match std::env::var_os("DW_BIN") {
        Some(folder) => Path::new(&folder).join(name),
        None => Path::new(env!("CARGO_BIN_EXE_dw-train")).with_file_name(name),
    }
}

/// A drawn and packed data set with a folder for results.
pub struct Place {
    dir: TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self::of(14, 5)
    }

    pub fn of(images: usize, val: usize) -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        let (images, val) = (images.to_string(), val.to_string());
        let coco = place.path("coco");
        run(Command::new(bin("dw-pack")).args([
            "synth",
            &coco,
            "--images",
            &images,
            "--val",
            &val,
            "--seed",
            "3",
            "--classes",
            "3",
            "--side",
            "128",
        ]));
        run(Command::new(bin("dw-pack")).arg(&coco));
        place
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn shards(&self) -> String {
        self.path("coco/shards")
    }

    /// Arguments of a smoke run into `work`.
    pub fn train_args(&self, work: &str, sets: &[&str]) -> Vec<String> {
        let mut args: Vec<String> =
            ["smoke", "--device", "cpu", "--data", &self.shards(), "--work-dir", &self.path(work)]
                .map(str::to_owned)
                .to_vec();
        for s in sets {
            args.extend(["--set".to_owned(), (*s).to_owned()]);
        }
        args
    }

    /// Trains on `ranks` processes (0: without mpirun) and expects success.
    pub fn train(&self, ranks: usize, work: &str, sets: &[&str]) {
        run(launch(ranks, "dw-train").args(self.train_args(work, sets)));
    }

    /// Rows of a run's steps; of a repeated step the later.
    pub fn steps(&self, work: &str) -> Vec<Map<String, Value>> {
        let mut steps = std::collections::BTreeMap::new();
        for row in self.rows(work).into_iter().filter(|r| r.contains_key("loss")) {
            steps.insert(row["step"].as_u64().unwrap(), row);
        }
        steps.into_values().collect()
    }

    pub fn rows(&self, work: &str) -> Vec<Map<String, Value>> {
        let text = std::fs::read_to_string(self.path(work) + "/metrics.jsonl").unwrap();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
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

    /// Losses of all steps, to the last bit.
    pub fn losses(&self, work: &str) -> Vec<String> {
        self.steps(work).iter().map(|r| r["loss"].to_string()).collect()
    }
}

/// A command on `ranks` processes; 0: without mpirun.
pub fn launch(ranks: usize, name: &str) -> Command {
    if ranks == 0 {
        return Command::new(bin(name));
    }
    let mut c = Command::new("mpirun");
    c.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    c.args(["-n", &ranks.to_string(), "--oversubscribe", "--bind-to", "none"]).arg(bin(name));
    c
}

/// `dw-launch OPTIONS -n RANKS -- NAME`; arguments of the program follow.
pub fn dw_launch(ranks: usize, options: &[&str], name: &str) -> Command {
    let mut c = Command::new(bin("dw-launch"));
    c.args(options).args(["-n", &ranks.to_string(), "--", name]);
    c
}

/// A job under way, whose standard error is read as it comes.
pub struct Job {
    child: Child,
    text: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

impl Job {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let (lines, text) =
            (BufReader::new(child.stderr.take().unwrap()), Arc::new(Mutex::new(String::new())));
        let into = text.clone();
        let reader = std::thread::spawn(move || {
            for line in lines.split(b'\n').map_while(Result::ok) {
                *into.lock().unwrap() += &(String::from_utf8_lossy(&line).into_owned() + "\n");
            }
        });
        Self { child, text, reader }
    }

    /// Its variables, as the system shows them.
    pub fn variables(&self) -> String {
        let bytes = std::fs::read(format!("/proc/{}/environ", self.child.id())).unwrap();
        String::from_utf8_lossy(&bytes).replace('\0', "\n")
    }

    /// What it has said so far.
    pub fn text(&self) -> String {
        self.text.lock().unwrap().clone()
    }

    /// Waits until it says this.
    pub fn until(&self, words: &str) {
        self.until_true(&format!("`{words}`"), || self.text().contains(words));
    }

    /// Waits until something has happened.
    pub fn until_true(&self, what: &str, done: impl Fn() -> bool) {
        let began = Instant::now();
        while !done() {
            assert!(
                began.elapsed() < Duration::from_mins(2),
                "waited in vain for {what}: {}",
                self.text()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn signal(&self, name: &str) {
        run(Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]));
    }

    /// Waits for its end; returns exit code and standard error.
    pub fn end(mut self, within: Duration) -> (Option<i32>, String) {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if began.elapsed() > within {
                let _ = self.child.kill();
                panic!("the job did not end within {within:?}: {}", self.text());
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        self.reader.join().unwrap();
        let text = self.text.lock().unwrap().clone();
        (status.code(), text)
    }
}

/// Processes whose command line holds this text.
pub fn processes(text: &str) -> Vec<String> {
    let out = Command::new("pgrep").args(["-f", text]).output().unwrap();
    String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect()
}

/// A number of rounds from the environment: a few in CI, many in `make soak`.
pub fn rounds(variable: &str, usual: usize) -> usize {
    std::env::var(variable)
        .ok()
        .map_or(usual, |v| v.parse().unwrap_or_else(|e| panic!("{variable}={v}: {e}")))
}

/// Runs to success; returns stdout.
pub fn run(command: &mut Command) -> String {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        out.status.success(),
        "{command:?}: {}\n{}",
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}

/// Runs to failure with this exit code; returns stderr.
pub fn fails(command: &mut Command, code: i32) -> String {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = stderr(&out);
    assert_eq!(out.status.code(), Some(code), "{command:?}: {text}");
    assert!(text.contains("error: ") && !text.contains("panicked"), "{text}");
    text
}

pub fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// Asserts that a text holds all words.
pub fn says(text: &str, words: &[&str]) {
    for w in words {
        assert!(text.contains(w), "expected `{w}` in: {text}");
    }
}

/// Flips one byte in the middle of a file.
pub fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

/// Files of a folder whose names end like this.
pub fn files(dir: &str, ending: &str) -> Vec<PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.to_string_lossy().ends_with(ending))
        .collect();
    found.sort();
    found
}
