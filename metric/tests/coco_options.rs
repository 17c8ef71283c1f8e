//! The options of `dw-eval coco` and what it prints.

mod coco_support;

use clap::Parser;
use coco_support::{Files, results, truth};
use dw_metric::cli::{Request, as_json, as_text, labels};
use dw_metric::{Evaluation, Problem, evaluate, json};
use serde_json::Value;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    request: Request,
}

fn request(options: &[&str]) -> Request {
    Cli::try_parse_from(["coco", "--gt", "gt.json", "--dt", "dt.json"].iter().chain(options))
        .unwrap()
        .request
}

fn run(options: &[&str]) -> (Evaluation, json::Truth) {
    let files = Files::new(truth().to_string(), results().to_string());
    let truth = json::truth(&files.gt(), &mut vec![]).unwrap();
    let detections = json::results(&files.dt(), &truth, &mut vec![]).unwrap();
    let problem = Problem {
        images: &truth.images,
        categories: &truth.categories,
        truth: &truth.boxes,
        detections: &detections,
    };
    (evaluate(&problem, &request(options).limits.params().unwrap()), truth)
}

fn keys(options: &[&str]) -> Vec<String> {
    let (e, truth) = run(options);
    as_json(&e, &labels(&truth.names, &truth.categories))
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect()
}

#[test]
fn keys_that_scripts_rely_on() {
    let usual = [
        "AP",
        "AP50",
        "AP75",
        "APs",
        "APm",
        "APl",
        "AR1",
        "AR10",
        "AR100",
        "ARs",
        "ARm",
        "ARl",
        "per_class",
    ];
    assert_eq!(keys(&[]), usual);
    let (e, truth) = run(&[]);
    let out = as_json(&e, &labels(&truth.names, &truth.categories));
    let names: Vec<&String> = out["per_class"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["cup", "cat"]);
    assert_eq!(out["APl"], Value::from(-1.0), "nothing large");
    // Read back, every number is the same to the bit.
    let back: Value = serde_json::from_str(&out.to_string()).unwrap();
    for (name, value) in e.named() {
        assert_eq!(back[&name].as_f64().map(f64::to_bits), Some(value.to_bits()), "{name}");
    }
    assert_eq!(e.named().iter().map(|n| n.1).collect::<Vec<_>>(), e.summary().named().map(|n| n.1));
}

#[test]
fn keys_follow_the_options() {
    assert_eq!(
        keys(&["--max-dets", "5,300"]),
        [
            "AP",
            "AP50",
            "AP75",
            "APs",
            "APm",
            "APl",
            "AR5",
            "AR300",
            "ARs",
            "ARm",
            "ARl",
            "per_class"
        ]
    );
    assert_eq!(keys(&["--iou-thresholds", "0.5,0.9"])[..3], ["AP", "AP50", "APs"]);
    let areas = keys(&["--area-ranges", "tiny:0..256,small:256..1024"]);
    assert_eq!(
        areas,
        [
            "AP",
            "AP50",
            "AP75",
            "AP_tiny",
            "APs",
            "AR1",
            "AR10",
            "AR100",
            "AR_tiny",
            "ARs",
            "per_class"
        ]
    );
}

/// pycocotools' headline turns -1 without a limit of 100; here it is at the largest.
#[test]
fn ap_is_at_the_largest_limit() {
    let (e, _) = run(&["--max-dets", "1,2"]);
    assert!((e.summary().ap - 1.0).abs() < 1e-9);
    assert_eq!(e.summary().ar100, -1.0);
}

#[test]
fn a_mistake_in_an_option_is_a_usage_error() {
    for options in [["--max-dets", "10,1"], ["--iou-thresholds", "1.5"], ["--area-ranges", "small"]]
    {
        let e = request(&options).limits.params().unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains(options[0]), "{e}");
    }
    assert!(Cli::try_parse_from(["coco", "--gt", "a"]).is_err());
}

#[test]
fn the_table_of_classes() {
    let (e, truth) = run(&[]);
    let text = as_text(&e, &labels(&truth.names, &truth.categories), true);
    let cup = text.lines().find(|l| l.trim().starts_with("cup")).unwrap();
    let cells: Vec<&str> = cup.split_whitespace().collect();
    assert_eq!(cells, ["cup", "1.0000", "1.0000", "1.0000", "1.0000", "2", "0", "2"]);
    assert!(!as_text(&e, &labels(&truth.names, &truth.categories), false).contains("cup"));
}

/// Two categories of one name do not hide each other.
#[test]
fn repeated_names_get_their_ids() {
    let (e, mut truth) = run(&[]);
    truth.names[1] = "cup".into();
    let out = as_json(&e, &labels(&truth.names, &truth.categories));
    let names: Vec<&String> = out["per_class"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["cup (id 3)", "cup (id 7)"]);
}
