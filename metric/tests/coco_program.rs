//! `dw-eval coco` as a program: where its words go and how it ends.

mod coco_support;

use std::process::{Command, Output};

use coco_support::{Files, results, truth};

fn program(files: &Files, options: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dw-eval"))
        .arg("coco")
        .arg("--gt")
        .arg(files.gt())
        .arg("--dt")
        .arg(files.dt())
        .args(options)
        .output()
        .unwrap()
}

#[test]
fn results_to_stdout_and_warnings_to_stderr() {
    let mut unknown = results();
    unknown[1]["category_id"] = 99.into();
    let out = program(&Files::new(truth().to_string(), unknown.to_string()), &["--json"]);
    assert_eq!(out.status.code(), Some(0));
    let json: serde_json::Value =
        serde_json::from_slice(&out.stdout).expect("stdout is the JSON and nothing else");
    assert_eq!(json["per_class"]["cat"], 0.0);
    assert!(String::from_utf8_lossy(&out.stderr).contains("ids 99"));
}

#[test]
fn exit_codes() {
    let files = Files::new(truth().to_string(), "[{}]");
    let out = program(&files, &[]);
    assert_eq!(out.status.code(), Some(3));
    assert!(
        out.stdout.is_empty()
            && String::from_utf8_lossy(&out.stderr).contains("results[0]: `image_id`: is missing")
    );
    assert_eq!(program(&files, &["--max-dets", "0"]).status.code(), Some(2));
    assert_eq!(program(&files, &["--no-such-option"]).status.code(), Some(2));
}

/// A pipe cannot be read at any place; it is read as a whole.
#[test]
fn a_pipe_as_results() {
    let files = Files::new(truth().to_string(), results().to_string());
    let line = format!(
        "cat {} | {} coco --gt {} --dt /dev/stdin --json",
        files.dt().display(),
        env!("CARGO_BIN_EXE_dw-eval"),
        files.gt().display()
    );
    let piped = Command::new("sh").arg("-c").arg(line).output().unwrap();
    assert_eq!(piped.status.code(), Some(0));
    assert_eq!(piped.stdout, program(&files, &["--json"]).stdout);
}

/// Escape sequences in names do not reach the terminal; JSON as people save it is read.
#[test]
fn names_with_escapes_and_files_with_a_mark() {
    let mut truth = truth();
    truth["categories"][0]["name"] = "cat\u{1b}[2J\u{9b}31m".into();
    for a in truth["annotations"].as_array_mut().unwrap() {
        a["iscrowd"] = (a["iscrowd"] == 1).into();
        let id = a["image_id"].as_f64().unwrap();
        a["image_id"] = id.into();
    }
    let marked = |text: String| format!("\u{feff}{text}");
    let files = Files::new(marked(truth.to_string()), marked(results().to_string()));
    let out = program(&files, &["--per-class"]);
    let text = String::from_utf8_lossy(&out.stdout);
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(text.contains(r"cat\u{1b}[2J\u{9b}31m") && !text.contains('\u{1b}'), "{text}");
    let device = Command::new(env!("CARGO_BIN_EXE_dw-eval"))
        .args(["coco", "--gt", "/dev/zero", "--dt"])
        .arg(files.dt())
        .output()
        .unwrap();
    assert_eq!(device.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&device.stderr).contains("/dev/zero is a device"));
}
