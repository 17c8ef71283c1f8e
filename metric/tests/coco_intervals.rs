//! `dw-eval coco --bootstrap` as a program.

mod coco_support;

use std::process::{Command, Output};

use coco_support::{Files, Set, results, truth};
use serde_json::{Value, json};

/// Files of a random problem, and a second results file with fewer detections.
fn files() -> Files {
    let set = Set::random(21, 60, 3);
    let images: Vec<Value> = set.images.iter().map(|id| json!({"id": id})).collect();
    let truth: Vec<Value> = set
        .truth
        .iter()
        .map(|g| {
            json!({"id": g.id, "image_id": g.image_id, "category_id": g.category_id,
                   "bbox": g.bbox, "area": g.area, "iscrowd": u8::from(g.crowd)})
        })
        .collect();
    let categories: Vec<Value> =
        set.categories.iter().map(|id| json!({"id": id, "name": format!("c{id}")})).collect();
    let found: Vec<Value> = set
        .detections
        .iter()
        .map(|d| {
            json!({"image_id": d.image_id, "category_id": d.category_id, "bbox": d.bbox,
                   "score": d.score})
        })
        .collect();
    let truth = json!({"images": images, "annotations": truth, "categories": categories});
    let files = Files::new(truth.to_string(), Value::from(found.clone()).to_string());
    let fewer: Vec<Value> = found.into_iter().step_by(3).collect();
    std::fs::write(files.dir.path().join("b.json"), Value::from(fewer).to_string()).unwrap();
    files
}

fn program(files: &Files, options: &[&str], threads: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dw-eval"));
    command.arg("coco").arg("--gt").arg(files.gt()).arg("--dt").arg(files.dt());
    command.args(options).env("RAYON_NUM_THREADS", threads).output().unwrap()
}

fn stdout(out: &Output) -> String {
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout.clone()).unwrap()
}

#[test]
fn intervals_as_text() {
    let files = files();
    let text = stdout(&program(&files, &["--bootstrap", "100", "--per-class"], "1"));
    let ap = text.lines().next().unwrap();
    assert!(ap.starts_with("AP ") && ap.ends_with(']') && ap.contains(" [0."), "{ap}");
    let ar = text.lines().find(|l| l.starts_with("AR100")).unwrap();
    assert!(!ar.contains('['), "{ar}");
    let class = text.lines().find(|l| l.trim().starts_with("c4")).unwrap();
    assert!(class.contains('['), "{class}");
    assert!(text.contains("100 samples of the images with replacement, seed 0"), "{text}");
    // Two threads give the same output, another seed gives another. The numbers are those without
    // intervals.
    let options = ["--bootstrap", "100", "--per-class", "--bootstrap-seed"];
    let seed =
        |s: &str, threads: &str| stdout(&program(&files, &[&options[..], &[s]].concat(), threads));
    assert_eq!(seed("0", "2"), text);
    assert_ne!(seed("1", "2"), text);
    let plain = stdout(&program(&files, &[], "1"));
    for (line, with) in plain.lines().zip(text.lines()) {
        assert!(with.starts_with(line), "{line}: {with}");
    }
    assert_eq!(plain, stdout(&program(&files, &["--bootstrap", "0"], "1")));
}

#[test]
fn intervals_as_json() {
    let files = files();
    let parse = |options: &[&str]| -> Value {
        serde_json::from_str(&stdout(&program(&files, options, "1"))).unwrap()
    };
    let mut with = parse(&["--json", "--bootstrap", "200", "--bootstrap-seed", "9"]);
    let bootstrap = with.as_object_mut().unwrap().remove("bootstrap").unwrap();
    assert_eq!(with, parse(&["--json"]), "other keys are unchanged");
    assert_eq!((&bootstrap["replicates"], &bootstrap["seed"]), (&json!(200), &json!(9)));
    assert_eq!((&bootstrap["resampled"], &bootstrap["level"]), (&json!("images"), &json!(0.95)));
    for name in ["AP", "AP50", "AP75", "APs", "APm", "APl"] {
        let (low, value, high) = (&bootstrap[name][0], &with[name], &bootstrap[name][1]);
        assert!(low.as_f64() < value.as_f64() && value.as_f64() < high.as_f64(), "{name}");
    }
    assert!(bootstrap["per_class"]["c1"][1].is_number());
    // A class without ground truth has no interval.
    let mut truth = truth();
    truth["annotations"].as_array_mut().unwrap().remove(1);
    let sparse = Files::new(truth.to_string(), results().to_string());
    let out = stdout(&program(&sparse, &["--json", "--bootstrap", "100"], "1"));
    let out: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(out["bootstrap"]["per_class"]["cat"], Value::Null);
}

#[test]
fn differences_and_whether_they_exclude_zero() {
    let files = files();
    let b = files.dir.path().join("b.json");
    let same = files.dt();
    let compare = |other: &std::path::Path, more: &[&str]| {
        let options =
            [&["--bootstrap", "200", "--compare", other.to_str().unwrap()], more].concat();
        stdout(&program(&files, &options, "2"))
    };
    let json: Value = serde_json::from_str(&compare(&b, &["--json"])).unwrap();
    let ap = &json["bootstrap"]["AP"];
    let difference = json["b"]["AP"].as_f64().unwrap() - json["a"]["AP"].as_f64().unwrap();
    assert_eq!(ap["b_minus_a"].as_f64(), Some(difference));
    assert!(ap["interval"][0].as_f64() < Some(difference), "{ap}");
    assert_eq!(ap["excludes_zero"], ap["interval"][1].as_f64() < Some(0.0), "{ap}");
    assert_eq!(ap["excludes_zero"], true, "two thirds of the detections are missing: {ap}");
    assert!(json["a"]["bootstrap"]["AP"][0].is_number());
    assert!(json["bootstrap"]["per_class"]["c7"]["excludes_zero"].is_boolean());
    // Both files use the same samples, so equal files have no difference in any sample.
    let json: Value = serde_json::from_str(&compare(&same, &["--json"])).unwrap();
    assert_eq!(json["bootstrap"]["AP"]["interval"], json!([0.0, 0.0]));
    assert_eq!(json["bootstrap"]["AP"]["excludes_zero"], false);
    let text = compare(&b, &["--per-class"]);
    assert!(text.lines().next().unwrap().contains("excludes 0"), "{text}");
    let ap = text.lines().find(|l| l.trim().starts_with("AP ")).unwrap();
    assert!(ap.contains("[-0.") && ap.trim_end().ends_with("yes"), "{ap}");
    assert!(text.contains("A and B share each sample"), "{text}");
}

#[test]
fn invalid_options_are_usage_errors() {
    let files = Files::new(truth().to_string(), results().to_string());
    for options in [
        &["--bootstrap", "5"][..],
        &["--bootstrap", "10001"],
        &["--bootstrap", "-1"],
        &["--bootstrap", "x"],
        &["--bootstrap-seed", "1"],
        &["--bootstrap", "100", "--bootstrap-seed", "x"],
    ] {
        let out = program(&files, options, "1");
        assert_eq!(out.status.code(), Some(2), "{options:?}");
        assert!(out.stdout.is_empty());
    }
    let out = program(&files, &["--bootstrap", "5"], "1");
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(error.contains("100 to 10000") && error.contains("hint: "), "{error}");
}
