//! `dw-eval` on a network and on files: options, test sets without ground truth, reports,
//! comparisons of two runs.

mod support;

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use serde_json::Value;
use support::{
    Sandbox, assert_contains, assert_fails, assert_line_contains, bin, launch, output, run, stderr,
};

/// Trains long enough to detect some of the objects.
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

/// Batch size, flipping and other image sizes change the metrics; the number of ranks does not.
#[test]
fn options_give_the_same_metrics_on_any_number_of_ranks() {
    let sandbox = trained();
    let plain = eval(&sandbox, 0, &[]);
    assert!(plain["AR100"].as_f64().unwrap() > 0.0, "no box was found: {plain}");
    for options in
        [&["--batch", "3"][..], &["--flip"], &["--scale", "64x96"], &["--max-dets", "1,5"]]
    {
        let expected = eval(&sandbox, 0, options);
        assert_ne!(expected, plain, "{options:?}");
        for ranks in [2, 3] {
            assert_eq!(eval(&sandbox, ranks, options), expected, "{options:?} on {ranks} ranks");
        }
    }
    let work = sandbox.path("w");
    let log = stderr(&output(launch(0, "dw-eval").args([&work, "--device", "cpu"])));
    let times = ["images/s", "network", "decoding", "NMS", "matching"];
    assert_line_contains(&log, &[&["7 images", "val2017"][..], &times].concat());
    assert_fails(launch(0, "dw-eval").args([&work, "--scale", "big"]), 2, &["--scale", "big"]);
    let mut c = launch(0, "dw-eval");
    assert_fails(c.args([&work, "--max-dets", "none"]), 2, &["--max-dets", "none"]);
}

/// A test set has images and no annotations: only a results file can be written.
#[test]
fn a_split_without_ground_truth_gives_a_results_file() {
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
    let keys = ["7 images", "`test-dev2017`", "hint:", "--dt-out"];
    assert_fails(launch(0, "dw-eval").args(args), 2, &keys);
    assert_eq!(run(launch(2, "dw-eval").args(args).args(["--dt-out", &dt])), "");
    let rows: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(dt).unwrap()).unwrap();
    assert!(!rows.is_empty());
    for row in rows {
        assert!(row["bbox"].as_array().unwrap().len() == 4 && row["image_id"].is_i64(), "{row}");
    }
}

/// Report page and table of one run and of two, from a network and from files.
#[test]
fn reports_and_comparisons_are_written() {
    let sandbox = trained();
    let (work, page, dt) = (sandbox.path("w"), sandbox.path("page"), sandbox.path("dt.json"));
    run(launch(2, "dw-eval").args([&work, "--device", "cpu", "--report", &page, "--dt-out", &dt]));
    let html = || std::fs::read_to_string(page.clone() + "/index.html").unwrap();
    let photo = "data:image/jpeg;base64,";
    assert_contains(&html(), &["AP50", "val2017", "resnet18", photo, "Background"]);
    assert!(!html().contains("AP B"), "columns of a second run");
    let newest = sandbox.checkpoints("w").pop().unwrap();
    let checkpoint = newest.to_str().unwrap().to_owned();
    let mut c = launch(2, "dw-eval");
    c.args(["--compare", &work, &checkpoint, "--device", "cpu", "--per-class", "--report", &page]);
    assert_contains(&run(&mut c), &["B - A", "+0.0000", "AP50"]);
    assert_contains(&html(), &["AP A", "AP B", photo]);
    let gt = sandbox.path("coco/annotations/instances_val2017.json");
    let images = sandbox.path("coco/val2017");
    std::fs::remove_dir_all(&page).unwrap();
    let mut c = Command::new(bin("dw-eval"));
    c.args(["coco", "--gt", &gt, "--dt", &dt, "--compare", &dt, "--json"]);
    c.args(["--report", &page, "--images", &images]);
    let json: Value = serde_json::from_str(&run(&mut c)).unwrap();
    assert!(json["a"]["AP"].is_number() && json["a"] == json["b"]);
    assert_contains(&html(), &[photo]);
    assert_fails(launch(0, "dw-eval").args(["--compare", &work]), 2, &["--compare"]);
    // Files are written also if nobody reads the numbers.
    std::fs::remove_dir_all(&page).unwrap();
    let (again, results) = (sandbox.path("again.json"), std::fs::read(&dt).unwrap());
    let mut own = launch(0, "dw-eval");
    own.args([&work, "--device", "cpu", "--report", &page, "--dt-out", &again]);
    let mut of_files = Command::new(bin("dw-eval"));
    of_files.args(["coco", "--gt", &gt, "--dt", &dt, "--report", &page]);
    for mut command in [own, of_files] {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        drop(child.stdout.take());
        assert_eq!(child.wait().unwrap().signal(), Some(13));
        assert_contains(&html(), &["AP50"]);
        std::fs::remove_dir_all(&page).unwrap();
    }
    assert_eq!(std::fs::read(&again).unwrap(), results);
}

#[test]
fn help_lists_the_options_of_both_forms() {
    let help = run(Command::new(bin("dw-eval")).arg("--help"));
    let options = ["--report", "--compare", "--flip", "--batch", "--scale"];
    assert_contains(&help, &[&["dw-eval", "coco"][..], &options].concat());
    let help = run(Command::new(bin("dw-eval")).args(["coco", "--help"]));
    assert_contains(&help, &["--gt", "--count-id-zero", "--iou-thresholds", "Examples:"]);
}

/// Each rank looks for the newest checkpoint itself, so ranks could find different ones while a run
/// is writing checkpoints.
#[test]
fn ranks_with_different_weights_are_refused() {
    let sandbox = Sandbox::new();
    let sets = ["train.max_steps=4", "checkpoint.every_steps=2", "eval.every_epochs=0"];
    sandbox.train(0, "w", &sets);
    let checkpoints = sandbox.checkpoints("w");
    assert_eq!(checkpoints.len(), 2);
    let mut c = launch(1, "dw-eval");
    c.arg(&checkpoints[0]).args(["--device", "cpu", ":", "-n", "1"]);
    c.arg(bin("dw-eval")).arg(&checkpoints[1]).args(["--device", "cpu"]);
    assert_fails(&mut c, 2, &["ranks [1]", "other weights", "hint:"]);
}

/// Each node could have a copy of the data; with another validation split on one of them, AP would
/// be wrong.
#[test]
fn ranks_with_different_validation_data_are_refused() {
    let (sandbox, other) = (Sandbox::new(), Sandbox::new());
    sandbox.train(0, "w", &["train.max_steps=1", "eval.every_epochs=0"]);
    let file = other.path("coco/annotations/instances_val2017.json");
    let mut truth: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    truth["annotations"].as_array_mut().unwrap().pop();
    std::fs::write(&file, truth.to_string()).unwrap();
    run(Command::new(bin("dw-pack")).arg(other.path("coco")));
    let on_two = |program: &str, first: &[String], second: &[String]| {
        let mut c = launch(1, program);
        c.args(first).args([":", "-n", "1"]).arg(bin(program)).args(second);
        assert_fails(&mut c, 2, &["have different", "val2017", "hint:", "all nodes share"]);
    };
    let eval =
        |data: String| ["--device", "cpu", &sandbox.path("w"), "--data", &data].map(str::to_owned);
    on_two("dw-eval", &eval(sandbox.shards()), &eval(other.shards()));
    let train = |data: &Sandbox| {
        let mut args = data.train_args("new", &["train.max_steps=2"]);
        let work = args.iter().position(|a| a == "--work-dir").unwrap() + 1;
        args[work] = sandbox.path("new");
        args
    };
    on_two("dw-train", &train(&sandbox), &train(&other));
}
