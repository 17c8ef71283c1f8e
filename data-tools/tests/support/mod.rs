//! Helpers for the tests of `dw-pack`: running it, a synthetic data set, reading folders.
#![allow(dead_code, reason = "each test binary uses only some of these")]

pub mod test_pack;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// Runs `dw-pack`.
pub fn pack(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dw-pack")).args(args).output().expect("dw-pack starts")
}

/// As [`pack`], with environment variables and a deadline in seconds.
pub fn pack_within(args: &[&str], variables: &[(&str, &str)], seconds: u64) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dw-pack"));
    command.args(args).envs(variables.iter().copied());
    let pipes = || std::process::Stdio::piped();
    let mut child = command.stdout(pipes()).stderr(pipes()).spawn().expect("dw-pack starts");
    let start = std::time::Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed().as_secs() >= seconds {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("dw-pack {args:?} did not end within {seconds} s");
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

/// Runs a command that must succeed; returns its standard output.
pub fn ok(args: &[&str]) -> String {
    let out = pack(args);
    assert!(out.status.success(), "dw-pack {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Splits options at spaces.
pub fn words(options: &str) -> Vec<&str> {
    options.split(' ').collect()
}

/// Runs a command that must fail with this exit code; returns its standard error.
pub fn fails(args: &[&str], code: i32) -> String {
    let out = pack(args);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "dw-pack {args:?}: {text}");
    assert!(text.starts_with("error: ") && !text.contains("panicked"), "{text}");
    text
}

/// A change of an annotation file.
pub type Change = fn(&mut Value);

/// A synthetic data set of 9 + 3 images.
pub struct Set {
    pub dir: TempDir,
}

impl Set {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = "--images 9 --val 3 --seed 7 --classes 3 --side 96";
        ok(&[&["synth", dir.path().to_str().unwrap()], &*words(options)].concat());
        Self { dir }
    }

    pub fn path(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }

    /// A path in the data set.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The annotation file of `train2017`.
    pub fn json(&self) -> PathBuf {
        self.file("annotations/instances_train2017.json")
    }

    /// Changes the annotation file.
    pub fn edit(&self, change: impl FnOnce(&mut Value)) {
        let mut v: Value = serde_json::from_slice(&std::fs::read(self.json()).unwrap()).unwrap();
        change(&mut v);
        std::fs::write(self.json(), v.to_string()).unwrap();
    }

    /// Changes the text of the annotation file.
    pub fn edit_text(&self, change: impl FnOnce(String) -> String) {
        let text = std::fs::read_to_string(self.json()).unwrap();
        std::fs::write(self.json(), change(text)).unwrap();
    }

    pub fn first_image(&self) -> PathBuf {
        self.file("train2017/000000000001.jpg")
    }

    /// Packing must fail with exit code 3 and a message that contains all `words`, and leave no
    /// files.
    pub fn assert_rejected(&self, words: &[&str]) {
        let text = fails(&[self.path(), "-o", self.file("bad").to_str().unwrap()], 3);
        for w in words {
            assert!(text.contains(w), "expected `{w}` in: {text}");
        }
        let left: Vec<_> = std::fs::read_dir(self.file("bad"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.file_name())
            .collect();
        assert!(left.is_empty(), "files left behind: {left:?}");
    }
}

/// A JPEG file with an EXIF orientation.
pub fn with_orientation(plain: &[u8], orientation: u8) -> Vec<u8> {
    let mut exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
    let mut rotated = plain[..2].to_vec();
    rotated.extend([0xff, 0xe1]);
    rotated.extend((exif.len() as u16 + 2).to_be_bytes());
    rotated.extend(exif);
    rotated.extend(&plain[2..]);
    rotated
}

/// Names and contents of the files in a folder, sorted.
pub fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .flatten()
        .map(|e| (e.file_name().to_string_lossy().into_owned(), std::fs::read(e.path()).unwrap()))
        .collect();
    all.sort();
    all
}
