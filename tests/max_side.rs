//! `dw-pack --max-side` stores smaller images; boxes, detections and metrics stay in pixels of the
//! original images.

mod support;

use std::process::Command;

use serde_json::Value;
use support::{Sandbox, bin, launch, run};

#[test]
fn results_are_in_pixels_of_the_original_image() {
    let sandbox = Sandbox::with_images(40, 9);
    sandbox.train(2, "w", &["train.epochs=8", "eval.every_epochs=0", "eval.score_threshold=0.01"]);
    let small = sandbox.path("small");
    run(Command::new(bin("dw-pack")).args([
        &sandbox.path("coco"),
        "-o",
        &small,
        "--max-side",
        "64",
    ]));
    let info: Value =
        serde_json::from_str(&run(Command::new(bin("dw-pack")).args(["info", &small, "--json"])))
            .unwrap();
    assert_eq!(info["splits"]["val2017"]["shrunken"], 9);
    let (dt, gt) =
        (sandbox.path("dt.json"), sandbox.path("coco/annotations/instances_val2017.json"));
    let options = [
        "--device",
        "cpu",
        "--data",
        &small,
        "--set",
        "eval.score_threshold=0.01",
        "--json",
        "--dt-out",
        &dt,
    ];
    let evaluated: Value =
        serde_json::from_str(&run(launch(0, "dw-eval").arg(sandbox.path("w")).args(options)))
            .unwrap();
    // The results file, evaluated against the original annotations.
    let args = ["coco", "--gt", &gt, "--dt", &dt, "--json"];
    let outside: Value =
        serde_json::from_str(&run(Command::new(bin("dw-eval")).args(args))).unwrap();
    assert_eq!(evaluated, outside, "all metrics, of all area ranges");
    let rows: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(&dt).unwrap()).unwrap();
    let right = |r: &Value| r["bbox"][0].as_f64().unwrap() + r["bbox"][2].as_f64().unwrap();
    assert!(rows.iter().map(right).fold(0.0, f64::max) > 70.0, "beyond the 64 stored pixels");
    // Training on the smaller images works too.
    let mut c = launch(0, "dw-train");
    let args = [
        "smoke",
        "--device",
        "cpu",
        "--data",
        &small,
        "--work-dir",
        &sandbox.path("v"),
        "--set",
        "train.epochs=1",
    ];
    run(c.args(args));
}
