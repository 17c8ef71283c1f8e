//! `dw-eval` with a network and with files: options, test sets without ground truth, reports, two runs side by side.

mod support;

use std::process::Command;

use serde_json::Value;
use support::{Place, bin, fails, launch, run, says, stderr};

/// A run that finds something.
fn trained() -> Place {
    let place = Place::of(40, 7);
    place.train(2, "w", &["train.epochs=8", "eval.every_epochs=0", "eval.score_threshold=0.01"]);
    place
}

fn eval(place: &Place, ranks: usize, options: &[&str]) -> Value {
    let out = run(launch(ranks, "dw-eval")
        .args([&place.path("w"), "--device", "cpu", "--json"])
        .args(options));
    serde_json::from_str(&out).unwrap()
}

/// Batches, mirrored views and other sizes change the numbers, and the number of ranks does not.
#[test]
fn options_give_the_same_numbers_on_any_number_of_ranks() {
    let place = trained();
    let plain = eval(&place, 0, &[]);
    assert!(plain["AR100"].as_f64().unwrap() > 0.0, "something was found: {plain}");
    for options in
        [&["--batch", "3"][..], &["--flip"], &["--scale", "64x96"], &["--max-dets", "1,5"]]
    {
        let alone = eval(&place, 0, options);
        assert_ne!(alone, plain, "{options:?}");
        for ranks in [2, 3] {
            assert_eq!(eval(&place, ranks, options), alone, "{options:?} on {ranks} ranks");
        }
    }
    let said = launch(0, "dw-eval").args([&place.path("w"), "--device", "cpu"]).output().unwrap();
    says(
        &stderr(&said),
        &["7 images of val2017", "images/s", "network", "decoding", "NMS", "matching"],
    );
    says(
        &fails(launch(0, "dw-eval").args([&place.path("w"), "--scale", "big"]), 2),
        &["SHORTxLONG"],
    );
    says(
        &fails(launch(0, "dw-eval").args([&place.path("w"), "--max-dets", "none"]), 2),
        &["max-dets"],
    );
}

/// A test set is a list of images: the results file is all there is.
#[test]
fn a_split_without_ground_truth_gives_the_results_file() {
    let place = trained();
    let annotations = place.path("coco/annotations");
    let mut list: Value = serde_json::from_str(
        &std::fs::read_to_string(format!("{annotations}/instances_val2017.json")).unwrap(),
    )
    .unwrap();
    list.as_object_mut().unwrap().remove("annotations");
    std::fs::write(format!("{annotations}/image_info_test-dev2017.json"), list.to_string())
        .unwrap();
    std::fs::rename(place.path("coco/val2017"), place.path("coco/test2017")).unwrap();
    run(Command::new(bin("dw-pack")).args([&place.path("coco"), "--split", "test-dev2017"]));
    let dt = place.path("dt.json");
    let args = [&place.path("w"), "--device", "cpu", "--split", "test-dev2017"];
    says(&fails(launch(0, "dw-eval").args(args), 2), &["none of the 7 images", "--dt-out"]);
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
    let place = trained();
    let (work, page, dt) = (place.path("w"), place.path("page"), place.path("dt.json"));
    run(launch(2, "dw-eval").args([&work, "--device", "cpu", "--report", &page, "--dt-out", &dt]));
    let html = std::fs::read_to_string(page.clone() + "/index.html").unwrap();
    says(&html, &["AP50", "val2017", "resnet18", "data:image/jpeg;base64,", "Background"]);
    let checkpoint =
        support::files(&(work.clone() + "/checkpoints"), "")[0].to_str().unwrap().to_owned();
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
    says(&out, &["B - A", "+0.0000", "AP50"]);
    let both = std::fs::read_to_string(page.clone() + "/index.html").unwrap();
    assert!(both != html && both.contains("differ most"));
    let gt = place.path("coco/annotations/instances_val2017.json");
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
        &place.path("coco/val2017"),
        "--json",
    ];
    let json: Value = serde_json::from_str(&run(Command::new(bin("dw-eval")).args(files))).unwrap();
    assert!(json["a"]["AP"].is_number() && json["a"] == json["b"]);
    says(&std::fs::read_to_string(page + "/index.html").unwrap(), &["data:image/jpeg;base64,"]);
    says(&fails(launch(0, "dw-eval").args(["--compare", &work]), 2), &["--compare"]);
}

#[test]
fn help_tells_both_halves() {
    let help = run(Command::new(bin("dw-eval")).arg("--help"));
    says(&help, &["dw-eval", "coco", "--report", "--compare", "--flip", "--batch", "--scale"]);
    says(
        &run(Command::new(bin("dw-eval")).args(["coco", "--help"])),
        &["--gt", "--count-id-zero", "--iou-thresholds", "Examples:"],
    );
    says(&run(Command::new(bin("dw-eval")).arg("--version")), &["libtorch"]);
}
