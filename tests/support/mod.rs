//! What the tests of the binaries share: a small drawn data set, processes, rows of metrics.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Map, Value};
use tempfile::TempDir;

/// A binary of this workspace.
pub fn bin(name: &str) -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_dw-train")).with_file_name(name)
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
            ["smoke", "--device", "cpu", "--data", &self.shards(), "--work-dir", &self.path(work)].map(str::to_owned).to_vec();
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

/// Runs to success; returns stdout.
pub fn run(command: &mut Command) -> String {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(out.status.success(), "{command:?}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
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
    let mut found: Vec<_> =
        std::fs::read_dir(dir).unwrap().flatten().map(|e| e.path()).filter(|p| p.to_string_lossy().ends_with(ending)).collect();
    found.sort();
    found
}
