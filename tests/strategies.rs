//! Every strategy trains, evaluates, resumes bit for bit, and gives the same losses on any number
//! of ranks.

mod support;

use std::process::Command;

use serde_json::{Value, json};
use support::{Sandbox, assert_contains, assert_fails, bin, launch, output, run, stderr};

/// Settings of each strategy other than DW, for the smoke configuration.
const STRATEGIES: [&[&str]; 15] = [
    &["assign.kind=vfl", "model.head=vfnet", "model.refine=false", "model.quality_tower=none"],
    &["assign.kind=dw", "model.head=tood", "model.refine=false", "model.quality_tower=none"],
    &[
        "assign.kind=tal",
        "assign.atss_epochs=1",
        "model.head=tood",
        "model.refine=false",
        "model.quality_tower=none",
    ],
    &["assign.kind=fcos", "model.refine=false"],
    &[
        "assign.kind=fcos",
        "assign.form=plain",
        "model.refine=false",
        "model.distances=exp",
        "model.quality_tower=cls",
        "model.tower_bias=false",
    ],
    &["assign.kind=atss", "model.refine=false", "model.distances=deltas", "model.tower_bias=false"],
    &[
        "assign.kind=gfl",
        "model.refine=false",
        "model.distances=distribution",
        "model.quality_tower=none",
        "model.tower_bias=false",
    ],
    &[
        "assign.kind=vfl",
        "model.refine=false",
        "model.distances=deltas",
        "model.quality_tower=none",
        "model.tower_bias=false",
    ],
    &[
        "assign.kind=tal",
        "assign.atss_epochs=1",
        "model.refine=false",
        "model.distances=deltas",
        "model.quality_tower=none",
        "model.tower_bias=false",
    ],
    &["assign.kind=autoassign", "model.refine=false"],
    &["assign.kind=paa", "model.refine=false", "model.distances=deltas", "model.tower_bias=false"],
    &["assign.kind=ota", "model.refine=false"],
    &["assign.kind=simota", "model.refine=false"],
    &["assign.kind=weighting", "assign.function=musu", "model.refine=false"],
    &[
        "assign.kind=gfl",
        "assign.assignment=fcos",
        "model.refine=false",
        "model.distances=distribution",
        "model.quality_tower=distribution",
        "model.tower_bias=false",
    ],
];

fn with<'a>(strategy: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [strategy, more].concat()
}

#[test]
fn every_strategy_resumes_exactly_and_evaluates() {
    for strategy in STRATEGIES {
        let sandbox = Sandbox::new();
        let sets = |steps| with(strategy, &["eval.every_epochs=1", steps]);
        for ranks in [2, 0] {
            let (whole, parts) =
                if ranks == 0 { ("whole", "parts") } else { ("whole-2", "parts-2") };
            sandbox.train(ranks, whole, &sets("train.max_steps=8"));
            sandbox.train(ranks, parts, &sets("train.max_steps=3"));
            sandbox.train(ranks, parts, &sets("train.max_steps=8"));
            assert_eq!(sandbox.losses(whole), sandbox.losses(parts), "{ranks} ranks, {strategy:?}");
        }
        let names: Vec<String> =
            sandbox.steps("whole")[0].keys().filter(|k| k.starts_with("loss_")).cloned().collect();
        let expected: &[&str] = match strategy[0] {
            "assign.kind=gfl" => &["loss_cls", "loss_bbox", "loss_dfl"],
            "assign.kind=vfl" if strategy.contains(&"model.head=vfnet") => {
                &["loss_cls", "loss_bbox", "loss_bbox_rf"]
            }
            "assign.kind=vfl" | "assign.kind=tal" => &["loss_cls", "loss_bbox"],
            "assign.kind=autoassign" => &["loss_pos", "loss_neg", "loss_center"],
            "assign.kind=paa" => &["loss_cls", "loss_bbox", "loss_iou"],
            "assign.kind=ota" => &["loss_cls", "loss_box_reg", "loss_iou"],
            "assign.kind=dw" | "assign.kind=weighting" => {
                &["loss_cls_pos", "loss_loc", "loss_cls_neg"]
            }
            "assign.kind=simota" => &["loss_cls", "loss_bbox", "loss_obj"],
            _ => &["loss_cls", "loss_bbox", "loss_centerness"],
        };
        assert_eq!(names, expected);
        let model = |work: &str| {
            std::fs::read(sandbox.path(work) + "/checkpoints/step-00000008/model.safetensors")
                .unwrap()
        };
        assert!(model("whole") == model("parts"), "{strategy:?}");
        // Scores are low after so few steps, so a low threshold is needed to keep detections.
        let eval = |more: &[&str]| -> serde_json::Value {
            let mut c = launch(0, "dw-eval");
            c.arg(sandbox.path("whole"))
                .args(["--device", "cpu", "--json", "--set", "eval.score_threshold=0.001"])
                .args(more);
            serde_json::from_str(&run(&mut c)).unwrap()
        };
        for more in [&[][..], &["--batch", "3"], &["--flip"]] {
            let found = eval(more);
            assert!(found["AR100"].as_f64().unwrap() > 0.0, "{more:?}: {found}");
        }
        let recorded = sandbox.rows("whole").into_iter().rfind(|r| r.contains_key("AP")).unwrap();
        assert!(recorded["AP"].is_number());
        run(std::process::Command::new(bin("dw-show")).args([
            "curves",
            &sandbox.path("whole"),
            "-o",
            &sandbox.path("c.png"),
        ]));
        assert!(std::fs::metadata(sandbox.path("c.png")).unwrap().len() > 1000);
        let weighting = |more: &[&str]| {
            let mut c = std::process::Command::new(bin("dw-show"));
            c.args(["weighting", &sandbox.path("whole"), "-o", &sandbox.path("w.png")]).args(more);
            c
        };
        run(&mut weighting(&["--image", "1"]));
        assert!(std::fs::metadata(sandbox.path("w.png")).unwrap().len() > 1000);
        assert_fails(&mut weighting(&["--image", "99"]), 2, &["--image 99", "5 images"]);
        assert_fails(&mut weighting(&["--box", "99"]), 2, &["--box 99"]);
    }
}

#[test]
fn losses_do_not_depend_on_the_number_of_ranks() {
    for strategy in STRATEGIES {
        let sandbox = Sandbox::new();
        let losses = |ranks: usize| -> Vec<f64> {
            let images = format!("train.images_per_rank={}", 4 / ranks);
            let work = format!("r{ranks}");
            let more = [
                "eval.every_epochs=0",
                "train.max_steps=5",
                "data.group=4",
                "train.precision=f64",
                &images,
            ];
            sandbox.train(if ranks == 1 { 0 } else { ranks }, &work, &with(strategy, &more));
            sandbox.steps(&work).iter().map(|s| s["loss"].as_f64().unwrap()).collect()
        };
        let (one, two) = (losses(1), losses(2));
        for (step, (a, b)) in one.iter().zip(&two).enumerate() {
            assert!(
                (a - b).abs() <= 1e-9 * a,
                "{strategy:?}, step {}: {a} on one rank, {b} on two",
                step + 1
            );
        }
    }
}

/// An evaluation during training summarises the weights of the objects, with the same numbers on
/// any number of ranks.
#[test]
fn weights_are_summarised_where_there_are_any() {
    let sandbox = Sandbox::new();
    let summary = |strategy: &[&str], ranks: usize| -> Vec<f64> {
        let images = format!("train.images_per_rank={}", 4 / ranks);
        let work = format!("w{ranks}-{}", strategy.len());
        let more = [
            "eval.every_epochs=1",
            "eval.bag_images=4",
            "train.max_steps=2",
            "data.group=4",
            "train.precision=f64",
            &images,
        ];
        sandbox.train(if ranks == 1 { 0 } else { ranks }, &work, &with(strategy, &more));
        let row = sandbox.rows(&work).into_iter().rfind(|r| r.contains_key("AP")).unwrap();
        let number = |name: &str| row[name].as_f64().unwrap();
        ["bag_candidates", "bag_unweighted", "bag_correlation"].map(number).to_vec()
    };
    for strategy in [&[][..], &["assign.kind=weighting", "model.refine=false"]] {
        let (one, two) = (summary(strategy, 1), summary(strategy, 2));
        assert!(one[0] > 0.5, "candidates of a box: {one:?}");
        assert!((0.0..1.0).contains(&one[1]) && (-1.0..=1.0).contains(&one[2]), "{one:?}");
        let close = one.iter().zip(&two).all(|(a, b)| (a - b).abs() < 1e-9);
        assert!(close, "{strategy:?}: {one:?} on one rank, {two:?} on two");
    }
    // `dw-eval` logs the same numbers.
    let row = sandbox.rows("w1-0").into_iter().rfind(|r| r.contains_key("AP")).unwrap();
    let mut c = launch(0, "dw-eval");
    c.arg(sandbox.path("w1-0")).args(["--device", "cpu"]);
    let log = stderr(&output(&mut c));
    let expected = format!("bag_candidates {:.3}", row["bag_candidates"].as_f64().unwrap());
    assert_contains(&log, &["weights, 4 images: ", &expected]);
    let mut c = launch(0, "dw-train");
    c.args(sandbox.train_args("w", &["assign.kind=fcos", "eval.bag_images=4"]));
    assert_fails(&mut c, 2, &["`eval.bag_images`", "assign.kind"]);
}

#[test]
fn a_head_that_does_not_fit_the_strategy_is_refused() {
    let sandbox = Sandbox::new();
    let refused = |sets: &[&str], texts: &[&str]| {
        let mut c = launch(0, "dw-train");
        c.args(sandbox.train_args("w", sets));
        assert_fails(&mut c, 2, texts);
    };
    let deltas = "model.distances=deltas";
    refused(&[deltas, "model.refine=false"], &["`assign.kind` = \"dw\"", "`model.distances`"]);
    refused(&[deltas, "assign.kind=atss"], &["`model.refine`", "model.distances = \"deltas\""]);
    let none = "model.quality_tower=none";
    refused(&[none], &["`assign.kind` = \"dw\"", "a quality branch", "found none"]);
    refused(&["assign.kind=vfl"], &["`assign.kind` = \"vfl\"", "no quality branch", "found reg"]);
    refused(&["assign.kind=gfl", none], &["`model.distances` = `distribution", "found relu"]);
    let topk = &["assign.kind=atss", "assign.topk=0", "model.refine=false"];
    refused(topk, &["`assign.topk`", "found 0"]);
}

#[test]
fn another_strategy_cannot_resume_a_run() {
    let sandbox = Sandbox::new();
    sandbox.train(0, "w", &["eval.every_epochs=0", "train.max_steps=2"]);
    let sets = ["eval.every_epochs=0", "train.max_steps=4", "assign.kind=fcos"];
    let mut c = launch(0, "dw-train");
    c.args(sandbox.train_args("w", &sets));
    assert_fails(&mut c, 2, &["assign.kind: \"dw\" -> \"fcos\"", "hint:"]);
}

/// In OTA, the boxes of an image can request more points than the image has.
#[test]
fn ota_has_positives_on_crowded_images() {
    let sandbox = Sandbox::with_images(4, 2);
    let file = sandbox.path("coco/annotations/instances_train2017.json");
    let mut coco: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let images: Vec<i64> =
        coco["images"].as_array().unwrap().iter().map(|i| i["id"].as_i64().unwrap()).collect();
    let boxes = images.iter().flat_map(|image| (0..400).map(move |n| (image, n)));
    let annotations: Vec<Value> = boxes
        .enumerate()
        .map(|(id, (image, n))| {
            json!({"id": id + 1, "image_id": image, "category_id": coco["categories"][0]["id"],
                   "bbox": [n % 20 * 3, n / 20 * 3, 12, 12], "area": 144, "iscrowd": 0})
        })
        .collect();
    coco["annotations"] = annotations.into();
    std::fs::write(&file, coco.to_string()).unwrap();
    run(Command::new(bin("dw-pack")).arg(sandbox.path("coco")));
    let sets =
        ["assign.kind=ota", "model.refine=false", "train.max_steps=2", "eval.every_epochs=0"];
    sandbox.train(0, "w", &sets);
    for row in sandbox.steps("w") {
        assert!(row["no_positive"] == 0 && row["loss_iou"].as_f64().unwrap() > 0.0, "{row:?}");
    }
}
