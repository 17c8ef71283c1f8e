//! Options and output of `dw-eval coco`.

mod coco_support;

use clap::Parser;
use coco_support::{Files, results, truth};
use dw_metric::cli::{CocoArgs, as_json, as_text, labels};
use dw_metric::{Evaluation, evaluate, json};
use serde_json::Value;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: CocoArgs,
}

/// The options of a command line with placeholder files.
fn parse(options: &[&str]) -> CocoArgs {
    Cli::try_parse_from(["coco", "--gt", "gt.json", "--dt", "dt.json"].iter().chain(options))
        .unwrap()
        .args
}

fn run(options: &[&str]) -> (Evaluation, json::Truth) {
    let files = Files::new(truth().to_string(), results().to_string());
    let truth = json::truth(&files.gt(), &mut vec![]).unwrap();
    let detections = json::results(&files.dt(), &truth, &mut vec![]).unwrap();
    let config = parse(options).limits.config().unwrap();
    (evaluate(&truth.problem(&detections), &config), truth)
}

/// Keys of the JSON output.
fn keys(options: &[&str]) -> Vec<String> {
    let (e, truth) = run(options);
    as_json(&e, None, &labels(&truth.names, &truth.categories))
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect()
}

#[test]
fn json_keys_and_values() {
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
    let out = as_json(&e, None, &labels(&truth.names, &truth.categories));
    let names: Vec<&String> = out["per_class"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["cup", "cat"]);
    assert_eq!(out["APl"], Value::from(-1.0), "no large ground truth");
    // Every number parses to the same bits.
    let back: Value = serde_json::from_str(&out.to_string()).unwrap();
    for (name, value) in e.named() {
        assert_eq!(back[&name].as_f64().map(f64::to_bits), Some(value.to_bits()), "{name}");
    }
    assert_eq!(e.named().iter().map(|n| n.1).collect::<Vec<_>>(), e.summary().named().map(|n| n.1));
}

#[test]
fn json_keys_follow_the_options() {
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

/// pycocotools' AP is -1 without a limit of 100.
#[test]
fn ap_uses_the_largest_limit() {
    let (e, _) = run(&["--max-dets", "1,2"]);
    assert!((e.summary().ap - 1.0).abs() < 1e-9);
    assert_eq!(e.summary().ar100, -1.0);
}

#[test]
fn an_invalid_option_is_a_usage_error() {
    for options in [["--max-dets", "10,1"], ["--iou-thresholds", "1.5"], ["--area-ranges", "small"]]
    {
        let e = parse(&options).limits.config().unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains(options[0]), "{e}");
    }
    assert!(Cli::try_parse_from(["coco", "--gt", "a"]).is_err());
}

#[test]
fn table_of_classes() {
    let (e, truth) = run(&[]);
    let text = as_text(&e, None, &labels(&truth.names, &truth.categories), true);
    let cup = text.lines().find(|l| l.trim().starts_with("cup")).unwrap();
    let cells: Vec<&str> = cup.split_whitespace().collect();
    assert_eq!(cells, ["cup", "1.0000", "1.0000", "1.0000", "1.0000", "2", "0", "2"]);
    assert!(!as_text(&e, None, &labels(&truth.names, &truth.categories), false).contains("cup"));
}

#[test]
fn duplicate_class_names_get_their_ids() {
    let (e, mut truth) = run(&[]);
    truth.names[1] = "cup".into();
    let out = as_json(&e, None, &labels(&truth.names, &truth.categories));
    let names: Vec<&String> = out["per_class"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["cup (id 3)", "cup (id 7)"]);
}
