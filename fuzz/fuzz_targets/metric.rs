//! Reads arbitrary bytes as ground truth and as results and evaluates them: an error or numbers,
//! but never a panic.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use dw_metric::{MetricConfig, evaluate, json};
use libfuzzer_sys::fuzz_target;

static PATH: LazyLock<PathBuf> =
    LazyLock::new(|| format!("/dev/shm/dw-fuzz-metric-{}.json", std::process::id()).into());

/// Valid ground truth for the results.
static TRUTH: LazyLock<json::Truth> = LazyLock::new(|| {
    let text = r#"{"images": [{"id": 1}, {"id": 2}], "categories": [{"id": 3, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 9, 9],
                         "area": 81, "iscrowd": 0}]}"#;
    std::fs::write(&*PATH, text).expect("cannot write the ground truth");
    json::truth(&PATH, &mut vec![]).expect("the ground truth is valid")
});

fuzz_target!(|data: &[u8]| {
    let valid = &*TRUTH;
    std::fs::write(&*PATH, data).expect("cannot write the input");
    if let Ok(truth) = json::truth(&PATH, &mut vec![]) {
        evaluate(&truth.problem(&[]), &MetricConfig::default()).summary();
    }
    if let Ok(detections) = json::results(&PATH, valid, &mut vec![]) {
        evaluate(&valid.problem(&detections), &MetricConfig::default()).summary();
    }
});
