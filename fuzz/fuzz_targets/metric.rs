//! Any bytes as ground truth and as results: read and evaluated, an error or numbers, never a crash.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use dw_metric::{Params, Problem, evaluate, json};
use libfuzzer_sys::fuzz_target;

static PATH: LazyLock<PathBuf> = LazyLock::new(|| format!("/dev/shm/dw-fuzz-metric-{}.json", std::process::id()).into());
/// What results are read against.
static TRUTH: LazyLock<json::Truth> = LazyLock::new(|| {
    let text = r#"{"images":[{"id":1},{"id":2}],"categories":[{"id":3,"name":"a"}],
        "annotations":[{"id":1,"image_id":1,"category_id":3,"bbox":[0,0,9,9],"area":81,"iscrowd":0}]}"#;
    std::fs::write(&*PATH, text).expect("write");
    json::truth(&PATH, &mut vec![]).expect("a sound file")
});

fuzz_target!(|data: &[u8]| {
    let sound = &*TRUTH;
    std::fs::write(&*PATH, data).expect("write");
    if let Ok(t) = json::truth(&PATH, &mut vec![]) {
        let problem = Problem { images: &t.images, categories: &t.categories, truth: &t.boxes, detections: &[] };
        evaluate(&problem, &Params::default()).summary();
    }
    if let Ok(detections) = json::results(&PATH, sound, &mut vec![]) {
        let problem = Problem { images: &sound.images, categories: &sound.categories, truth: &sound.boxes, detections: &detections };
        evaluate(&problem, &Params::default()).summary();
    }
});
