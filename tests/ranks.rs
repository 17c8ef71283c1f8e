//! Training and evaluation with real processes: one, several, more than there are cores.

mod support;

use serde_json::Value;
use support::{Sandbox, assert_contains, bin, files_in, flip_bit, launch, run, run_failing};

#[test]
fn trains_evaluates_and_saves_on_any_number_of_ranks() {
    let sandbox = Sandbox::new();
    for ranks in [0, 1, 2, 3] {
        let work = format!("work{ranks}");
        sandbox.train(ranks, &work, &["train.epochs=1"]);
        let steps = sandbox.steps(&work);
        let batch = 2 * ranks.max(1);
        assert!(
            steps.len() >= 13 / batch && steps.len() <= 14usize.div_ceil(batch),
            "{} steps on {ranks} ranks",
            steps.len()
        );
        for key in [
            "step",
            "epoch",
            "loss",
            "lr",
            "data_s",
            "step_s",
            "images_per_s",
            "loss_cls_pos",
            "loss_loc",
            "loss_cls_neg",
        ] {
            assert!(steps.iter().all(|s| s[key].is_number()), "{key}");
        }
        let ap = sandbox
            .rows(&work)
            .into_iter()
            .find(|r| r.contains_key("AP"))
            .expect("a row of the evaluation");
        assert!(ap["AP50"].is_number());
        let checkpoints = sandbox.checkpoints(&work);
        assert_eq!(checkpoints.len(), 1);
        for f in
            ["model.safetensors", "momentum.safetensors", "state.json", "manifest.json", "DONE"]
        {
            assert!(std::fs::metadata(checkpoints[0].join(f)).unwrap().len() > 0, "{f}");
        }
        assert!(
            std::fs::read_to_string(sandbox.path(&work) + "/config.toml")
                .unwrap()
                .contains("[train]")
        );
    }
}

/// Pain 11: the same seed gives the same losses, to the last bit, with threads and ranks as they come.
#[test]
fn twenty_steps_are_the_same_twice() {
    let sandbox = Sandbox::new();
    for (ranks, network) in
        [(1, "model.norm=gn"), (2, "model.norm=gn"), (2, "model.dcn_last_conv=true")]
    {
        let sets = ["eval.every_epochs=0", "train.max_steps=20", network];
        let (a, b) = (format!("a{ranks}{network}"), format!("b{ranks}{network}"));
        sandbox.train(ranks, &a, &sets);
        sandbox.train(ranks, &b, &sets);
        assert_eq!(sandbox.losses(&a).len(), 20);
        assert_eq!(sandbox.losses(&a), sandbox.losses(&b), "{ranks} ranks, {network}");
    }
}

/// Pain 12: ten steps, a stop and ten more are twenty steps, to the last bit.
#[test]
fn resume_is_bit_exact() {
    let sandbox = Sandbox::new();
    for (ranks, norm) in [(1, "gn"), (2, "gn"), (2, "bn")] {
        let norm = format!("model.norm={norm}");
        let (whole, cut) = (format!("whole{ranks}{norm}"), format!("cut{ranks}{norm}"));
        let sets = |steps| vec!["eval.every_epochs=0", norm.as_str(), steps];
        sandbox.train(ranks, &whole, &sets("train.max_steps=20"));
        sandbox.train(ranks, &cut, &sets("train.max_steps=10"));
        sandbox.train(ranks, &cut, &sets("train.max_steps=20"));
        assert_eq!(sandbox.losses(&whole).len(), 20);
        assert_eq!(sandbox.losses(&whole), sandbox.losses(&cut), "{ranks} ranks, {norm}");
        assert_ne!(sandbox.losses(&whole)[10], sandbox.losses(&whole)[11], "the loss moves");
    }
}

/// Pain 13: one big batch on one rank is several smaller ones on as many ranks, where the padded shapes are equal.
#[test]
fn losses_do_not_depend_on_the_number_of_ranks() {
    let sandbox = Sandbox::with_images(24, 5);
    let sets = |images| {
        vec![
            "eval.every_epochs=0",
            "train.max_steps=10",
            "data.group=12",
            "train.precision=f64",
            images,
        ]
    };
    let losses = |work: &str| -> Vec<f64> {
        sandbox.steps(work).iter().map(|s| s["loss"].as_f64().unwrap()).collect()
    };
    sandbox.train(1, "1", &sets("train.images_per_rank=12"));
    let alone = losses("1");
    assert_eq!(alone.len(), 10);
    for (ranks, images) in [
        (2, "train.images_per_rank=6"),
        (3, "train.images_per_rank=4"),
        (4, "train.images_per_rank=3"),
    ] {
        let work = ranks.to_string();
        sandbox.train(ranks, &work, &sets(images));
        for (step, (a, b)) in alone.iter().zip(losses(&work)).enumerate() {
            assert!((a - b).abs() <= 1e-9 * a, "step {step}: {a} on one rank, {b} on {ranks}");
        }
    }
}

/// Pain 6: an image without boxes, alone on its rank, holds nobody up and changes nothing that it should not.
#[test]
fn images_without_boxes_are_part_of_the_batch() {
    let sandbox = Sandbox::new();
    let sets = |images| {
        vec![
            "eval.every_epochs=0",
            "train.max_steps=14",
            "data.filter_empty=false",
            "data.group=2",
            "train.precision=f64",
            images,
        ]
    };
    sandbox.train(1, "1", &sets("train.images_per_rank=2"));
    sandbox.train(2, "2", &sets("train.images_per_rank=1"));
    for (a, b) in sandbox.steps("1").iter().zip(sandbox.steps("2")) {
        let (a, b) = (a["loss"].as_f64().unwrap(), b["loss"].as_f64().unwrap());
        assert!((a - b).abs() <= 1e-9 * a, "{a} and {b}");
    }
    assert_eq!(sandbox.steps("2").len(), 14);
}

/// Gradients sent as bf16 are rounded, and no more than that: after one step momentum is the gradient itself.
#[test]
fn compressed_gradients_are_close() {
    let sandbox = Sandbox::new();
    let sets = |how| {
        let one = [
            "eval.every_epochs=0",
            "train.max_steps=1",
            "train.weight_decay=0",
            "train.first_bucket_mib=0.1",
            "train.bucket_mib=0.5",
        ];
        one.into_iter().chain([how]).collect::<Vec<_>>()
    };
    sandbox.train(2, "f32", &sets("train.grad_compression=none"));
    sandbox.train(2, "bf16", &sets("train.grad_compression=bf16"));
    let momentum = |work: &str| {
        let bytes =
            std::fs::read(sandbox.checkpoints(work)[0].join("momentum.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut all: Vec<(String, Vec<f32>)> = tensors
            .iter()
            .map(|(n, t)| {
                (
                    n.to_owned(),
                    t.data()
                        .chunks_exact(4)
                        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                        .collect(),
                )
            })
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    // Each rank's part and their sum are rounded to 8 bits; where parts of opposite sign cancel, more is off.
    let square = |v: f64| v * v;
    let (mut off, mut all) = (0.0, 0.0);
    for ((name, exact), (_, rounded)) in momentum("f32").iter().zip(momentum("bf16")) {
        let difference: f64 =
            exact.iter().zip(&rounded).map(|(a, b)| square(f64::from(a - b))).sum();
        let size: f64 = exact.iter().map(|a| square(f64::from(*a))).sum();
        assert!(
            difference.sqrt() <= size.sqrt() / 16.0,
            "{name}: off by {} of {}",
            difference.sqrt(),
            size.sqrt()
        );
        (off, all) = (off + difference, all + size);
    }
    let error = (off / all).sqrt();
    assert!(error > 0.0 && error < 1.0 / 128.0, "relative error of the gradient: {error}");
}

/// Pain 13: a run goes on with another number of ranks as long as they can share the global batch.
#[test]
fn resume_on_another_number_of_ranks() {
    let sandbox = Sandbox::new();
    let sets = |steps| vec!["eval.every_epochs=0", "data.group=4", steps];
    sandbox.train(2, "w", &sets("train.max_steps=4"));
    sandbox.train(1, "w", &sets("train.max_steps=6"));
    assert_eq!(sandbox.steps("w").len(), 6);
    let text = run_failing(
        launch(3, "dw-train").args(sandbox.train_args("w", &sets("train.max_steps=8"))),
        2,
    );
    assert_contains(&text, &["global batch of 4", "1, 2, 4"]);
}

/// Pain 7: a loss that is not finite stops all ranks and names step, terms and images.
#[test]
fn a_loss_that_is_not_finite_is_told() {
    let sandbox = Sandbox::new();
    let sets =
        ["train.lr=1e30", "train.warmup_steps=0", "train.clip_norm=0", "eval.every_epochs=0"];
    let text = run_failing(launch(2, "dw-train").args(sandbox.train_args("w", &sets)), 3);
    assert_contains(
        &text,
        &["step ", "is not a finite number", "loss_cls_neg", "images [", "hint: lower train.lr"],
    );
}

/// Pains 2 and 19: a damaged shard ends the whole job, with shard, record and offset.
#[test]
fn a_damaged_shard_ends_the_job() {
    let sandbox = Sandbox::new();
    flip_bit(&files_in(&sandbox.shards(), ".dwshard")[0]);
    let text = run_failing(
        launch(2, "dw-train").args(sandbox.train_args("w", &["eval.every_epochs=0"])),
        3,
    );
    assert_contains(&text, &[".dwshard", "record", "at offset", "damaged"]);
}

/// Pain 20: every image is evaluated once on any number of ranks; the numbers are the same to the last digit, and
/// the results file gives them again.
#[test]
fn evaluation_does_not_depend_on_the_number_of_ranks() {
    let sandbox = Sandbox::with_images(40, 7);
    sandbox.train(2, "w", &["train.epochs=8", "eval.every_epochs=0", "eval.score_threshold=0.01"]);
    let eval = |ranks: usize| {
        let dt = sandbox.path(&format!("dt{ranks}.json"));
        let json = run(launch(ranks, "dw-eval").args([
            &sandbox.path("w"),
            "--device",
            "cpu",
            "--json",
            "--dt-out",
            &dt,
        ]));
        (json, std::fs::read_to_string(dt).unwrap())
    };
    let alone = eval(0);
    for ranks in [1, 2, 3] {
        assert_eq!(eval(ranks), alone, "{ranks} ranks");
    }
    let gt = sandbox.path("coco/annotations/instances_val2017.json");
    let again = run(launch(0, "dw-eval").args([
        "coco",
        "--gt",
        &gt,
        "--dt",
        &sandbox.path("dt0.json"),
        "--json",
    ]));
    let (a, b): (Value, Value) =
        (serde_json::from_str(&alone.0).unwrap(), serde_json::from_str(&again).unwrap());
    for key in
        ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    {
        assert_eq!(a[key], b[key], "{key}");
    }
    assert!(a["AR100"].as_f64().unwrap() > 0.0, "something was found: {a}");
    for (out, args) in
        [("pred.png", vec!["pred", "W", "-n", "3"]), ("curves.png", vec!["curves", "W"])]
    {
        let png = sandbox.path(out);
        let args: Vec<String> = args
            .into_iter()
            .map(|a| if a == "W" { sandbox.path("w") } else { a.to_owned() })
            .collect();
        run(std::process::Command::new(bin("dw-show")).args(args).args(["-o", &png]));
        let image = image::open(&png).unwrap().to_rgb8();
        assert!(image.width() > 300 && image.pixels().any(|p| p != image.get_pixel(0, 0)));
    }
}

/// The best checkpoint outlives newer ones, also over a resume.
#[test]
fn the_best_checkpoint_is_kept() {
    let sandbox = Sandbox::new();
    sandbox.train(0, "w", &["train.epochs=1", "checkpoint.keep=1"]);
    let folder = sandbox.path("w") + "/checkpoints";
    let best = files_in(&folder, "")[0].clone();
    // Say that the first epoch was very good.
    let metrics = sandbox.path("w") + "/metrics.jsonl";
    let text = std::fs::read_to_string(&metrics).unwrap();
    let at = text.find("\"AP\":").unwrap();
    let end = at + text[at..].find(',').unwrap();
    std::fs::write(&metrics, format!("{}\"AP\":0.99{}", &text[..at], &text[end..])).unwrap();
    sandbox.train(0, "w", &["train.epochs=3", "checkpoint.keep=1"]);
    let left = files_in(&folder, "");
    assert!(left.len() == 2 && left.contains(&best), "{left:?}");
}
