//! `dw-pack --max-side`: fewer pixels are stored; boxes, detections and numbers stay in the original's pixels.

mod support;

use std::process::Command;

use serde_json::Value;
use support::{Sandbox, bin, launch, run};

#[test]
fn results_are_in_pixels_of_the_original() {
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
    // Against the original annotations, by the metric alone.
    let args = ["coco", "--gt", &gt, "--dt", &dt, "--json"];
    let outside: Value =
        serde_json::from_str(&run(Command::new(bin("dw-eval")).args(args))).unwrap();
    assert_eq!(evaluated, outside, "all numbers, of all area classes");
    let rows: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(&dt).unwrap()).unwrap();
    let right = |r: &Value| r["bbox"][0].as_f64().unwrap() + r["bbox"][2].as_f64().unwrap();
    assert!(rows.iter().map(right).fold(0.0, f64::max) > 70.0, "beyond the stored 64 pixels");
    // It trains, too, and the network's input has the same size as from the whole pictures.
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
