//! `dw-detect`: the same detections as `dw-eval`, output files, and inputs that are refused.

mod support;

#[path = "../docs/detect.rs"]
mod example;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dw::eval::read_picture;
use serde_json::Value;
use support::{
    Sandbox, assert_contains, assert_fails, assert_line_contains, files_in, launch, output, run,
    stderr,
};

/// Trains for a few steps. The network detects more than 100 boxes with low scores on each image.
fn trained() -> Sandbox {
    let sandbox = Sandbox::with_images(8, 7);
    let sets = ["train.max_steps=3", "eval.every_epochs=0", "eval.score_threshold=0.005"];
    sandbox.train(0, "w", &sets);
    sandbox
}

fn detect(sandbox: &Sandbox, ranks: usize) -> Command {
    let mut c = launch(ranks, "dw-detect");
    c.args([&sandbox.path("w"), "--device", "cpu"]);
    c
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Image ids by file name.
fn ids(sandbox: &Sandbox) -> BTreeMap<String, i64> {
    let path = sandbox.path("coco/annotations/instances_val2017.json");
    let coco: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let images = coco["images"].as_array().unwrap().iter();
    images
        .map(|i| (i["file_name"].as_str().unwrap().to_owned(), i["id"].as_i64().unwrap()))
        .collect()
}

/// The rows of JSON in the form of COCO's results.
fn as_results(rows: &[Value], ids: &BTreeMap<String, i64>) -> Vec<Value> {
    let of = |row: &Value| {
        let name = Path::new(row["file"].as_str().unwrap()).file_name().unwrap();
        let id = ids[name.to_str().unwrap()];
        let found = row["detections"].as_array().unwrap().clone();
        found.into_iter().map(move |d| {
            serde_json::json!({"image_id": id, "category_id": d["category_id"], "bbox": d["bbox"],
                               "score": d["score"]})
        })
    };
    rows.iter().flat_map(of).collect()
}

#[test]
fn detections_equal_those_of_dw_eval_to_the_last_bit() {
    let sandbox = trained();
    let (work, dt, folder) =
        (sandbox.path("w"), sandbox.path("dt.json"), sandbox.path("coco/val2017"));
    let ids = ids(&sandbox);
    let list = sandbox.path("list.txt");
    let paths: Vec<String> = ids.keys().map(|name| format!("{folder}/{name}")).collect();
    std::fs::write(&list, paths.join("\n")).unwrap();
    for options in [&[][..], &["--batch", "3"], &["--flip", "--scale", "64x96"]] {
        let mut c = launch(0, "dw-eval");
        run(c.args([&work, "--device", "cpu", "--dt-out", &dt]).args(options));
        let expected: Vec<Value> =
            serde_json::from_str(&std::fs::read_to_string(&dt).unwrap()).unwrap();
        assert!(expected.len() > 100, "{} detections", expected.len());
        for ranks in [0, 2] {
            let mut c = detect(&sandbox, ranks);
            c.args(["--json", "--score", "0"]).args(options);
            if ranks == 0 {
                c.arg(&folder);
            } else {
                c.arg("-").stdin(File::open(&list).unwrap());
            }
            let rows = json_lines(&run(&mut c));
            assert_eq!(rows.len(), 7);
            assert!(as_results(&rows, &ids) == expected, "{options:?} on {ranks} ranks");
        }
    }
}

#[test]
fn the_page_shows_the_example_and_it_gives_the_same_detections() {
    let page = include_str!("../docs/detect.md");
    let code = include_str!("../docs/detect.rs");
    assert!(page.contains(code), "docs/detect.md differs from docs/detect.rs");
    assert!(code.lines().count() <= 15);
    let sandbox = trained();
    let picture = files_in(&sandbox.path("coco/val2017"), ".jpg").remove(0);
    let mut c = detect(&sandbox, 0);
    let rows = json_lines(&run(c.arg(&picture).args(["--json", "--score", "0"])));
    tch::set_num_threads(1);
    let found = example::detect(Path::new(&sandbox.path("w")), &picture).unwrap();
    let rows = rows[0]["detections"].as_array().unwrap();
    assert!(found.len() == rows.len() && !found.is_empty());
    for ((name, score, [x1, y1, x2, y2]), row) in found.iter().zip(rows) {
        let [x1, y1, x2, y2] = [x1, y1, x2, y2].map(|v| f64::from(*v));
        let bbox = serde_json::json!([x1, y1, x2 - x1, y2 - y1]);
        assert_eq!((&bbox, row["score"].as_f64()), (&row["bbox"], Some(f64::from(*score))));
        assert_eq!(row["category"].as_str(), Some(name.as_str()));
    }
    assert!(read_picture(Path::new("nowhere.jpg")).is_err());
}

/// As in `dw-detect ... | head`, where the reader closes the pipe early: this is not an error.
#[test]
fn a_closed_pipe_ends_the_program_quietly() {
    let sandbox = trained();
    let mut printing = detect(&sandbox, 0);
    printing.args(["--json", "--score", "0", &sandbox.path("coco/val2017")]);
    let mut dry = launch(0, "dw-train");
    dry.args(sandbox.train_args("new", &[])).arg("--dry-run");
    for mut command in [printing, dry] {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let done = child.wait_with_output().unwrap();
        let log = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.signal(), Some(13), "{command:?}: {log}");
        assert!(!log.contains("error"), "{log}");
    }
}

#[test]
fn pictures_are_drawn_and_lines_are_written_in_order() {
    let sandbox = trained();
    let (pictures, out) = (sandbox.path("pictures"), sandbox.path("out/drawn"));
    std::fs::create_dir(&pictures).unwrap();
    let source = files_in(&sandbox.path("coco/val2017"), ".jpg");
    for (from, to) in source.iter().zip(["b.jpg", "a.JPEG", "c.png"]) {
        std::fs::copy(from, format!("{pictures}/{to}")).unwrap();
    }
    std::fs::copy(&source[3], format!("{pictures}/a.jpg")).unwrap();
    std::fs::write(format!("{pictures}/notes.txt"), "x").unwrap();
    let mut c = detect(&sandbox, 2);
    c.args([&pictures, "-o", &out, "--json", "--score", "0.01"]);
    let done = output(&mut c);
    let text = String::from_utf8(done.stdout.clone()).unwrap();
    assert_eq!(std::fs::read_to_string(out.clone() + "/detections.jsonl").unwrap(), text);
    let log = stderr(&done);
    assert_line_contains(&log, &["4 pictures", "1 other files"]);
    let times = ["4 pictures", "images/s", "network", "decoding", "NMS", "drawing"];
    assert_line_contains(&log, &times);
    let rows = json_lines(&text);
    let names = ["a.JPEG", "a.jpg", "b.jpg", "c.png"];
    let drawn = ["a.png", "a.jpg.png", "b.png", "c.png"];
    for ((row, name), drawn) in rows.iter().zip(names).zip(drawn) {
        let path = format!("{pictures}/{name}");
        assert_eq!(row["file"].as_str(), Some(path.as_str()));
        let before = read_picture(Path::new(&path)).unwrap();
        let after = read_picture(Path::new(&format!("{out}/{drawn}"))).unwrap();
        assert_eq!((before.width, before.height), (after.width, after.height));
        assert!(before.data != after.data, "{name}: no boxes");
        assert_eq!(row["width"].as_u64(), Some(before.width as u64));
        let found = row["detections"].as_array().unwrap();
        assert!(found.iter().all(|d| d["score"].as_f64().unwrap() >= 0.01));
        assert!(found[0]["category"].is_string(), "{row}");
    }
    assert_eq!((rows.len(), std::fs::read_dir(&out).unwrap().count()), (4, 5));
    // Without --json: one line of text for each picture.
    let lines = run(detect(&sandbox, 0).args([&pictures, "--score", "0.01"]));
    assert_eq!(lines.lines().count(), 4);
    assert_line_contains(&lines, &["a.JPEG", " x ", " 0.0"]);
    let nothing = run(detect(&sandbox, 0).args([&pictures, "--score", "1"]));
    assert_line_contains(&nothing, &["c.png", "nothing"]);
    // The folder of the pictures is not an output folder.
    let mut c = detect(&sandbox, 0);
    assert_fails(c.args([&pictures, "-o", &pictures]), 2, &["-o", "a.JPEG", "hint:"]);
}

#[test]
fn unreadable_pictures_are_left_out_and_named() {
    let sandbox = trained();
    let good = files_in(&sandbox.path("coco/val2017"), ".jpg").remove(0);
    let (bad, missing) = (sandbox.path("bad.jpg"), sandbox.path("missing.jpg"));
    std::fs::write(&bad, "not a picture").unwrap();
    for ranks in [0, 2] {
        let mut c = detect(&sandbox, ranks);
        c.args([&bad, &missing]).arg(&good).args(["--json", "--batch", "2"]);
        let out = c.output().unwrap();
        let log = stderr(&out);
        assert_eq!(out.status.code(), Some(3), "{log}");
        let rows = json_lines(&String::from_utf8(out.stdout).unwrap());
        assert_eq!((rows.len(), rows[0]["file"].as_str()), (1, good.to_str()));
        let error = support::last_error(&log);
        let formats = "expected a JPEG, PNG, WebP, BMP or TIFF image, found other data";
        assert_contains(error, &["2 of 3 pictures", "bad.jpg", formats, "missing.jpg"]);
    }
}

/// A copy of a `.safetensors` file without metadata.
fn without_class_names(file: &Path) -> PathBuf {
    let bytes = std::fs::read(file).unwrap();
    let (length, rest) = bytes.split_at(8);
    let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
    let mut header: Value = serde_json::from_slice(header).unwrap();
    let names = header.as_object_mut().unwrap().remove("__metadata__").unwrap();
    assert_contains(&names.to_string(), &["classes"]);
    let mut header = header.to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let copy = file.with_file_name("copy.safetensors");
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(&copy, [&length[..], header.as_bytes(), data].concat()).unwrap();
    copy
}

/// Weights copied out of a checkpoint keep the names of the classes. `--classes` changes them.
#[test]
fn weights_of_a_checkpoint_have_class_names() {
    let sandbox = trained();
    let weights = sandbox.checkpoints("w").pop().unwrap().join("model.safetensors");
    let picture = files_in(&sandbox.path("coco/val2017"), ".jpg").remove(0);
    let rows = |weights: &Path, options: &[&str]| {
        let mut c = launch(0, "dw-detect");
        c.arg(weights).arg(&picture).args(["--device", "cpu", "--json", "--score", "0"]);
        c.args(["--set", "eval.score_threshold=0.005"]);
        json_lines(&run(c.args(options)))[0]["detections"].as_array().unwrap().clone()
    };
    let names = |rows: &[Value]| -> Vec<String> {
        rows.iter().map(|r| r["category"].as_str().unwrap().to_owned()).collect()
    };
    let of_run = names(&rows(Path::new(&sandbox.path("w")), &[]));
    assert_eq!(names(&rows(&weights, &["--config", "smoke"])), of_run);
    let classes = sandbox.path("classes.txt");
    std::fs::write(&classes, "kind 0\nkind 1\nkind 2\n").unwrap();
    let found = names(&rows(&weights, &["--config", "smoke", "--classes", &classes]));
    assert!(!found.is_empty() && found.iter().all(|name| name.starts_with("kind ")), "{found:?}");
    std::fs::write(&classes, "one").unwrap();
    let mut c = launch(0, "dw-detect");
    c.arg(&weights).arg(&picture).args(["--config", "smoke", "--classes", &classes]);
    assert_fails(&mut c, 2, &["--classes: expected", "found 1"]);
}

#[test]
fn wrong_arguments_are_usage_errors() {
    let sandbox = trained();
    let good = files_in(&sandbox.path("coco/val2017"), ".jpg").remove(0);
    let good = good.to_str().unwrap();
    let fails = |args: &[&str], code: i32, keys: &[&str]| {
        let mut c = launch(0, "dw-detect");
        assert_fails(
            c.args(args).args(["--device", "cpu"]).stdin(File::open("/dev/null").unwrap()),
            code,
            keys,
        );
    };
    let (work, annotations) = (sandbox.path("w"), sandbox.path("coco/annotations"));
    fails(&[&work, &annotations], 2, &["annotations", "other files", ".png", "hint:"]);
    fails(&[&work, "-"], 2, &["standard input", "hint:"]);
    let list = sandbox.path("list.txt");
    std::fs::write(&list, format!("{good}\0{good}\0")).unwrap();
    let mut c = launch(0, "dw-detect");
    c.args([&work, "-", "--device", "cpu"]).stdin(File::open(&list).unwrap());
    assert_fails(&mut c, 2, &["NUL", "-print0"]);
    // The output would also replace a link to a picture.
    let links = sandbox.path("links");
    std::fs::create_dir(&links).unwrap();
    std::os::unix::fs::symlink(good, format!("{links}/a.png")).unwrap();
    fails(&[&work, &links, "-o", &links], 2, &["a.png", "in this folder", "hint:"]);
    fails(&[&work, good, "--score", "2"], 2, &["--score", "from 0 to 1"]);
    fails(&[&sandbox.path("none"), good], 2, &["none"]);
    fails(&[&work, good, "--classes", good], 2, &["--classes", "checkpoint"]);
    // A weight file: without configuration, without classes, with too few classes.
    let newest = sandbox.checkpoints("w").pop().unwrap();
    let weights = without_class_names(&newest.join("model.safetensors"));
    let weights = weights.to_str().unwrap();
    fails(&[weights, good], 2, &["--config"]);
    fails(&[weights, good, "--config", "smoke"], 2, &["--classes FILE", "--data OUT"]);
    let classes = sandbox.path("classes.txt");
    std::fs::write(&classes, "one\ntwo\n").unwrap();
    let config = ["--config", "smoke", "--classes", &classes];
    fails(&[&[weights, good][..], &config].concat(), 2, &["number of classes"]);
    std::fs::write(&classes, "\n").unwrap();
    fails(&[&[weights, good][..], &config].concat(), 3, &["classes.txt", "one per line"]);
    // Class names from a file or from the packed data give the same detections.
    std::fs::write(&classes, "one\ntwo\nthree\n").unwrap();
    let shards = sandbox.shards();
    let all = ["--score", "0", "--json", "--set", "eval.score_threshold=0.005"];
    let found = |more: &[&str]| {
        let mut c = launch(0, "dw-detect");
        json_lines(&run(c.args([weights, good, "--device", "cpu"]).args(more).args(all)))
    };
    let (own, packed) = (found(&config), found(&["--config", "smoke", "--data", &shards]));
    let expected = json_lines(&run(detect(&sandbox, 0).args([good, "--json", "--score", "0"])));
    assert_eq!(packed, expected);
    let (own, packed) = (&own[0]["detections"][0], &packed[0]["detections"][0]);
    assert_eq!((&own["bbox"], &own["score"]), (&packed["bbox"], &packed["score"]));
    assert!(["one", "two", "three"].contains(&own["category"].as_str().unwrap()));
}
