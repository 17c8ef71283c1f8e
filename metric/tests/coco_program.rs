//! `dw-eval coco` as a program: output streams, exit codes and files.

mod coco_support;

use std::process::{Command, Output};

use coco_support::{Files, results, truth};

/// Runs `dw-eval coco` on the files.
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
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).expect("only JSON on stdout");
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
            && String::from_utf8_lossy(&out.stderr).contains("results[0]: `image_id`")
    );
    assert_eq!(program(&files, &["--max-dets", "0"]).status.code(), Some(2));
    assert_eq!(program(&files, &["--no-such-option"]).status.code(), Some(2));
}

/// A pipe has no random access, so it is read into memory as a whole.
#[test]
fn results_from_a_pipe() {
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

/// Escape sequences in names do not reach the terminal. Byte-order marks, ids as 1.0 and
/// `iscrowd` as a boolean are accepted.
#[test]
fn escape_sequences_byte_order_marks_and_devices() {
    let mut truth = truth();
    truth["categories"][0]["name"] = "cat\u{1b}[2J\u{9b}31m".into();
    for a in truth["annotations"].as_array_mut().unwrap() {
        a["iscrowd"] = (a["iscrowd"] == 1).into();
        let id = a["image_id"].as_f64().unwrap();
        a["image_id"] = id.into();
    }
    let with_mark = |text: String| format!("\u{feff}{text}");
    let files = Files::new(with_mark(truth.to_string()), with_mark(results().to_string()));
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
    assert!(String::from_utf8_lossy(&device.stderr).contains("/dev/zero"));
}

fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// Control characters are escaped in JSON, so that names are unchanged and cannot affect a
/// terminal.
#[test]
fn json_and_warnings_hold_no_raw_control_characters() {
    let class = "cat\u{1b}[2J\u{9b}31m\u{7f}\u{202e}";
    let mut truth = truth();
    truth["categories"][1]["name"] = class.into();
    let raw = |text: &str| text.contains(['\u{1b}', '\u{9b}', '\u{7f}', '\u{202e}']);
    let out = program(&Files::new(truth.to_string(), results().to_string()), &["--json"]);
    assert!(!raw(std::str::from_utf8(&out.stdout).unwrap()));
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(json["per_class"][class].is_number(), "{json}");
    // Without a detection of a known category the warning lists the known ones.
    let mut unknown = results();
    for d in unknown.as_array_mut().unwrap() {
        d["category_id"] = 99.into();
    }
    let out = program(&Files::new(truth.to_string(), unknown.to_string()), &[]);
    let text = stderr(&out);
    assert!(text.contains("7 cat") && text.contains("9b") && !raw(&text), "{text:?}");
}

#[test]
fn utf16_is_an_error_that_names_it() {
    let wide: Vec<u8> = "\u{feff}[]".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let out = program(&Files::new(truth().to_string(), wide), &[]);
    assert_eq!(out.status.code(), Some(3));
    assert!(stderr(&out).contains("UTF-16"), "{}", stderr(&out));
}

#[test]
fn numbers_are_printed_if_the_report_cannot_be_written() {
    let files = Files::new(truth().to_string(), results().to_string());
    let plain = files.dir.path().join("plain");
    std::fs::write(&plain, "").unwrap();
    let below = plain.join("page");
    // Detected before the evaluation.
    let out = program(&files, &["--report", below.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(2), "{}", stderr(&out));
    assert!(out.stdout.is_empty() && stderr(&out).contains("--report"), "{}", stderr(&out));
    // Like a full disk: the file size limit of the shell is 0.
    let line = format!(
        "trap '' XFSZ; ulimit -f 0; exec {} coco --gt {} --dt {} --report {}",
        env!("CARGO_BIN_EXE_dw-eval"),
        files.gt().display(),
        files.dt().display(),
        files.dir.path().join("page").display()
    );
    let out = Command::new("sh").arg("-c").arg(line).output().unwrap();
    assert_eq!(out.status.code(), Some(3), "{}", stderr(&out));
    assert!(stderr(&out).contains("index.html"), "{}", stderr(&out));
    assert_eq!(out.stdout, program(&files, &[]).stdout);
    let left = std::fs::read_dir(files.dir.path().join("page")).unwrap().count();
    assert_eq!(left, 0, "no temporary file is left");
}

#[test]
fn threads_that_cannot_be_started() {
    let files = Files::new(truth().to_string(), results().to_string());
    let run = |name: &str, value: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dw-eval"));
        command.arg("coco").arg("--gt").arg(files.gt()).arg("--dt").arg(files.dt());
        command.env(name, value).output().unwrap()
    };
    // There is not enough address space for such stacks.
    let out = run("RUST_MIN_STACK", "140737488355328");
    assert_eq!(out.status.code(), Some(5), "{}", stderr(&out));
    assert!(stderr(&out).contains("RAYON_NUM_THREADS"), "{}", stderr(&out));
    let out = run("RAYON_NUM_THREADS", "60000");
    assert_eq!(out.status.code(), Some(2), "{}", stderr(&out));
    assert!(stderr(&out).contains("found 60000"), "{}", stderr(&out));
}

#[test]
fn images_outside_their_folder_need_an_option() {
    let mut truth = truth();
    truth["images"][0]["file_name"] = "../secret.png".into();
    truth["images"][1]["file_name"] = "link.png".into();
    let files = Files::new(truth.to_string(), results().to_string());
    let (images, secret) = (files.dir.path().join("images"), files.dir.path().join("secret.png"));
    std::fs::create_dir(&images).unwrap();
    image::RgbImage::from_pixel(64, 64, image::Rgb([200, 0, 0])).save(&secret).unwrap();
    std::os::unix::fs::symlink(&secret, images.join("link.png")).unwrap();
    let page = files.dir.path().join("page");
    let options = ["--report", page.to_str().unwrap(), "--images", images.to_str().unwrap()];
    let html = || std::fs::read_to_string(page.join("index.html")).unwrap();
    let out = program(&files, &options);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    assert!(!html().contains("data:image/jpeg"), "the page has an image from outside the folder");
    assert!(stderr(&out).contains("--allow-outside"), "{}", stderr(&out));
    let out = program(&files, &[&options[..], &["--allow-outside"]].concat());
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    assert!(html().contains("data:image/jpeg") && !stderr(&out).contains("--allow-outside"));
    let out = program(&files, &["--report", options[1], "--images", "/no/such/folder"]);
    assert_eq!(out.status.code(), Some(2), "{}", stderr(&out));
}
