//! `dw-eval` with a network and with files: options, test sets without ground truth, reports, two runs side by side.

mod support;

use std::process::Command;

use serde_json::Value;
use support::{Sandbox, assert_contains, bin, launch, run, run_failing, stderr};

/// A run that finds something.
fn trained() -> Sandbox {
    let sandbox = Sandbox::with_images(40, 7);
    sandbox.train(2, "w", &["train.epochs=8", "eval.every_epochs=0", "eval.score_threshold=0.01"]);
    sandbox
}

fn eval(sandbox: &Sandbox, ranks: usize, options: &[&str]) -> Value {
    let out = run(launch(ranks, "dw-eval")
        .args([&sandbox.path("w"), "--device", "cpu", "--json"])
        .args(options));
    serde_json::from_str(&out).unwrap()
}

/// Batches, mirrored views and other sizes change the numbers, and the number of ranks does not.
#[test]
fn options_give_the_same_numbers_on_any_number_of_ranks() {
    let sandbox = trained();
    let plain = eval(&sandbox, 0, &[]);
    assert!(plain["AR100"].as_f64().unwrap() > 0.0, "something was found: {plain}");
    for options in
        [&["--batch", "3"][..], &["--flip"], &["--scale", "64x96"], &["--max-dets", "1,5"]]
    {
        let alone = eval(&sandbox, 0, options);
        assert_ne!(alone, plain, "{options:?}");
        for ranks in [2, 3] {
            assert_eq!(eval(&sandbox, ranks, options), alone, "{options:?} on {ranks} ranks");
        }
    }
    let said = launch(0, "dw-eval").args([&sandbox.path("w"), "--device", "cpu"]).output().unwrap();
    assert_contains(
        &stderr(&said),
        &["7 images of val2017", "images/s", "network", "decoding", "NMS", "matching"],
    );
    assert_contains(
        &run_failing(launch(0, "dw-eval").args([&sandbox.path("w"), "--scale", "big"]), 2),
        &["SHORTxLONG"],
    );
    assert_contains(
        &run_failing(launch(0, "dw-eval").args([&sandbox.path("w"), "--max-dets", "none"]), 2),
        &["max-dets"],
    );
}

/// A test set is a list of images: the results file is all there is.
#[test]
fn a_split_without_ground_truth_gives_the_results_file() {
    let sandbox = trained();
    let annotations = sandbox.path("coco/annotations");
    let mut list: Value = serde_json::from_str(
        &std::fs::read_to_string(format!("{annotations}/instances_val2017.json")).unwrap(),
    )
    .unwrap();
    list.as_object_mut().unwrap().remove("annotations");
    std::fs::write(format!("{annotations}/image_info_test-dev2017.json"), list.to_string())
        .unwrap();
    std::fs::rename(sandbox.path("coco/val2017"), sandbox.path("coco/test2017")).unwrap();
    run(Command::new(bin("dw-pack")).args([&sandbox.path("coco"), "--split", "test-dev2017"]));
    let dt = sandbox.path("dt.json");
    let args = [&sandbox.path("w"), "--device", "cpu", "--split", "test-dev2017"];
    assert_contains(
        &run_failing(launch(0, "dw-eval").args(args), 2),
        &["none of the 7 images", "--dt-out"],
    );
    assert_eq!(run(launch(2, "dw-eval").args(args).args(["--dt-out", &dt])), "");
    let rows: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(dt).unwrap()).unwrap();
    assert!(
        !rows.is_empty()
            && rows
                .iter()
                .all(|r| r["bbox"].as_array().unwrap().len() == 4 && r["image_id"].is_i64())
    );
}

/// The page and the table of one run and of two, from a network and from files.
#[test]
fn reports_and_comparisons() {
    let sandbox = trained();
    let (work, page, dt) = (sandbox.path("w"), sandbox.path("page"), sandbox.path("dt.json"));
    run(launch(2, "dw-eval").args([&work, "--device", "cpu", "--report", &page, "--dt-out", &dt]));
    let html = std::fs::read_to_string(page.clone() + "/index.html").unwrap();
    assert_contains(
        &html,
        &["AP50", "val2017", "resnet18", "data:image/jpeg;base64,", "Background"],
    );
    let checkpoint =
        support::files_in(&(work.clone() + "/checkpoints"), "")[0].to_str().unwrap().to_owned();
    let out = run(launch(2, "dw-eval").args([
        "--compare",
        &work,
        &checkpoint,
        "--device",
        "cpu",
        "--per-class",
        "--report",
        &page,
    ]));
    assert_contains(&out, &["B - A", "+0.0000", "AP50"]);
    let both = std::fs::read_to_string(page.clone() + "/index.html").unwrap();
    assert!(both != html && both.contains("differ most"));
    let gt = sandbox.path("coco/annotations/instances_val2017.json");
    let files = [
        "coco",
        "--gt",
        &gt,
        "--dt",
        &dt,
        "--compare",
        &dt,
        "--report",
        &page,
        "--images",
        &sandbox.path("coco/val2017"),
        "--json",
    ];
    let json: Value = serde_json::from_str(&run(Command::new(bin("dw-eval")).args(files))).unwrap();
    assert!(json["a"]["AP"].is_number() && json["a"] == json["b"]);
    assert_contains(
        &std::fs::read_to_string(page + "/index.html").unwrap(),
        &["data:image/jpeg;base64,"],
    );
    assert_contains(
        &run_failing(launch(0, "dw-eval").args(["--compare", &work]), 2),
        &["--compare"],
    );
}

#[test]
fn help_tells_both_halves() {
    let help = run(Command::new(bin("dw-eval")).arg("--help"));
    assert_contains(
        &help,
        &["dw-eval", "coco", "--report", "--compare", "--flip", "--batch", "--scale"],
    );
    assert_contains(
        &run(Command::new(bin("dw-eval")).args(["coco", "--help"])),
        &["--gt", "--count-id-zero", "--iou-thresholds", "Examples:"],
    );
    assert_contains(&run(Command::new(bin("dw-eval")).arg("--version")), &["libtorch"]);
}
