//! Training and evaluation on one and on several ranks, also on more ranks than cores.

mod support;

use std::process::Command;

use serde_json::{Value, json};
use support::{Sandbox, assert_contains, assert_fails, bin, files_in, flip_bit, launch, run};

/// Keys of every step's row in `metrics.jsonl`.
const STEP_KEYS: [&str; 10] = [
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
];

#[test]
fn training_evaluates_and_saves_on_any_number_of_ranks() {
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
        for key in STEP_KEYS {
            assert!(steps.iter().all(|s| s[key].is_number()), "{key}");
        }
        let evaluation = sandbox.rows(&work).into_iter().find(|r| r.contains_key("AP"));
        assert!(evaluation.expect("a row of the evaluation")["AP50"].is_number());
        let checkpoints = sandbox.checkpoints(&work);
        assert_eq!(checkpoints.len(), 1);
        for f in
            ["model.safetensors", "momentum.safetensors", "state.json", "manifest.json", "DONE"]
        {
            assert!(std::fs::metadata(checkpoints[0].join(f)).unwrap().len() > 0, "{f}");
        }
        let config = std::fs::read_to_string(sandbox.path(&work) + "/config.toml").unwrap();
        assert_contains(&config, &["[train]"]);
    }
}

/// The same seed gives the same losses, bit for bit.
#[test]
fn a_repeated_run_gives_the_same_losses() {
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

/// Ten steps, a stop and ten more give the losses of twenty steps, bit for bit.
#[test]
fn resume_is_bit_exact() {
    let sandbox = Sandbox::new();
    for (ranks, norm) in [(1, "gn"), (2, "gn"), (2, "bn")] {
        let norm = format!("model.norm={norm}");
        let (whole, parts) = (format!("whole{ranks}{norm}"), format!("parts{ranks}{norm}"));
        let sets = |steps| vec!["eval.every_epochs=0", norm.as_str(), steps];
        sandbox.train(ranks, &whole, &sets("train.max_steps=20"));
        sandbox.train(ranks, &parts, &sets("train.max_steps=10"));
        sandbox.train(ranks, &parts, &sets("train.max_steps=20"));
        assert_eq!(sandbox.losses(&whole).len(), 20);
        assert_eq!(sandbox.losses(&whole), sandbox.losses(&parts), "{ranks} ranks, {norm}");
        assert_ne!(sandbox.losses(&whole)[10], sandbox.losses(&whole)[11], "the loss changes");
    }
}

/// A global batch gives the same loss on one rank as when divided among several, if the padded
/// shapes are equal.
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
    let expected = losses("1");
    assert_eq!(expected.len(), 10);
    for (ranks, images) in [
        (2, "train.images_per_rank=6"),
        (3, "train.images_per_rank=4"),
        (4, "train.images_per_rank=3"),
    ] {
        let work = ranks.to_string();
        sandbox.train(ranks, &work, &sets(images));
        for (step, (a, b)) in expected.iter().zip(losses(&work)).enumerate() {
            assert!((a - b).abs() <= 1e-9 * a, "step {step}: {a} on one rank, {b} on {ranks}");
        }
    }
}

/// A rank with several passes computes the losses of as many ranks; its run can be resumed on them
/// and the other way round, and is bit-exact on its own.
#[test]
fn accumulated_gradients_give_the_losses_of_as_many_ranks() {
    let sandbox = Sandbox::with_images(24, 5);
    let train = |ranks: usize, work: &str, accumulate: &str, steps: &str, precision: &str| {
        let precision = format!("train.precision={precision}");
        let sets = ["train.images_per_rank=2", accumulate, steps, &precision];
        sandbox.train(ranks, work, &[&["eval.every_epochs=0"], &sets[..]].concat());
        sandbox.losses(work)
    };
    let [one, two, four] = ["train.accumulate=1", "train.accumulate=2", "train.accumulate=4"];
    let [half, whole] = ["train.max_steps=5", "train.max_steps=10"];
    let expected = train(4, "4x1", one, whole, "f64");
    assert_eq!(expected.len(), 10);
    let number = |text: &String| text.parse::<f64>().unwrap();
    let check = |losses: Vec<String>, case: &str| {
        for (step, (a, b)) in expected.iter().zip(&losses).enumerate() {
            let (a, b) = (number(a), number(b));
            assert!((a - b).abs() <= 1e-9 * a, "{case}, step {step}: {a} on four ranks, {b}");
        }
        assert_eq!(losses.len(), 10, "{case}");
    };
    check(train(2, "2x2", two, whole, "f64"), "two ranks, two passes");
    // The same command on another number of ranks, from one rank to two and from two to one.
    train(1, "1x4", four, half, "f64");
    check(train(2, "1x4", four, whole, "f64"), "resumed on two ranks");
    train(2, "2 of 4", two, half, "f64");
    check(train(1, "2 of 4", two, whole, "f64"), "resumed on one rank");
    let settings = std::fs::read_to_string(sandbox.path("2 of 4/settings-2.txt")).unwrap();
    assert!(settings.contains("8 = 2 images x 1 ranks x 4 passes"), "{settings}");
    for precision in ["f32", "bf16"] {
        let (a, b) = (format!("a{precision}"), format!("b{precision}"));
        train(1, &b, four, half, precision);
        assert_eq!(train(1, &a, four, whole, precision), train(1, &b, four, whole, precision));
    }
}

/// The running statistics of batch norm are those of the whole batch, however many ranks share it:
/// the mean of a channel is the mean of the means of two images of one size.
#[test]
fn running_statistics_of_batch_norm_are_averaged_over_the_ranks() {
    let sandbox = Sandbox::new();
    let sets = |images| {
        let all = ["model.norm=bn", "model.init=random", "train.precision=f64", "data.group=2"];
        [&all[..], &["train.max_steps=1", "eval.every_epochs=0", "data.flip=0.0", images]].concat()
    };
    sandbox.train(1, "1", &sets("train.images_per_rank=2"));
    sandbox.train(2, "2", &sets("train.images_per_rank=1"));
    let means = |work: &str| {
        let file = sandbox.checkpoints(work)[0].join("model.safetensors");
        let tensors = tch::Tensor::read_safetensors(file).unwrap();
        let of = |name: &str| tensors.iter().find(|t| t.0 == name).unwrap().1.shallow_clone();
        of("backbone.bn1.running_mean").to_kind(tch::Kind::Double)
    };
    let [whole, shared] = ["1", "2"].map(means);
    assert!(whole.abs().max().double_value(&[]) > 1e-3, "as at the start");
    let off = (whole - shared).abs().max().double_value(&[]);
    assert!(off < 1e-12, "{off}");
}

/// A rank whose batch has no boxes takes part in the normalisation: the losses equal those of a
/// single rank, and there is no deadlock.
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

/// Gradients reduced in bf16 differ only by rounding. After one step, the momentum equals the
/// gradient.
#[test]
fn bf16_gradients_differ_only_by_rounding() {
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
    // Each rank's gradient and their sum are rounded to 8 bits. The relative error is larger where
    // gradients of opposite sign cancel.
    let square = |v: f64| v * v;
    let (mut error, mut all) = (0.0, 0.0);
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
        (error, all) = (error + difference, all + size);
    }
    let error = (error / all).sqrt();
    assert!(error > 0.0 && error < 1.0 / 128.0, "relative error of the gradient: {error}");
}

/// A run can resume on another number of ranks that divides its global batch.
#[test]
fn resume_on_another_number_of_ranks() {
    let sandbox = Sandbox::new();
    let sets = |steps| vec!["eval.every_epochs=0", "data.group=4", steps];
    sandbox.train(2, "w", &sets("train.max_steps=4"));
    sandbox.train(1, "w", &sets("train.max_steps=6"));
    assert_eq!(sandbox.steps("w").len(), 6);
    let args = sandbox.train_args("w", &sets("train.max_steps=8"));
    let keys = ["3 ranks", "global batch", "4 images", "hint:", "1, 2, 4"];
    assert_fails(launch(3, "dw-train").args(args), 2, &keys);
}

/// A loss that is not finite stops all ranks; the error names step, loss terms and images.
#[test]
fn a_loss_that_is_not_finite_stops_the_run() {
    let sandbox = Sandbox::new();
    let sets =
        ["train.lr=1e30", "train.warmup_steps=0", "train.clip_norm=0", "eval.every_epochs=0"];
    let args = sandbox.train_args("w", &sets);
    let keys = ["error: step ", "loss_cls_neg", "images [", "hint:", "train.lr"];
    assert_fails(launch(2, "dw-train").args(args), 3, &keys);
}

/// A damaged record stops all ranks; the error names shard, record and offset.
#[test]
fn a_damaged_shard_stops_the_job() {
    let sandbox = Sandbox::new();
    flip_bit(&files_in(&sandbox.shards(), ".dwshard")[0]);
    let args = sandbox.train_args("w", &["eval.every_epochs=0"]);
    let keys = [".dwshard", "record ", "offset ", "checksum"];
    assert_fails(launch(2, "dw-train").args(args), 3, &keys);
}

/// Every image is evaluated once on any number of ranks: the metrics are identical to the last
/// digit, and so are those computed from the results file.
#[test]
fn evaluation_does_not_depend_on_the_number_of_ranks() {
    let sandbox = Sandbox::with_images(40, 7);
    sandbox.train(2, "w", &["train.epochs=8", "eval.every_epochs=0", "eval.score_threshold=0.01"]);
    let eval = |ranks: usize| {
        let dt = sandbox.path(&format!("dt{ranks}.json"));
        let mut c = launch(ranks, "dw-eval");
        c.args([&sandbox.path("w"), "--device", "cpu", "--json", "--dt-out", &dt]);
        (run(&mut c), std::fs::read_to_string(dt).unwrap())
    };
    let expected = eval(0);
    for ranks in [1, 2, 3] {
        assert_eq!(eval(ranks), expected, "{ranks} ranks");
    }
    let gt = sandbox.path("coco/annotations/instances_val2017.json");
    let dt = sandbox.path("dt0.json");
    let recomputed = run(launch(0, "dw-eval").args(["coco", "--gt", &gt, "--dt", &dt, "--json"]));
    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let (a, b) = (json(&expected.0), json(&recomputed));
    for key in
        ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    {
        assert_eq!(a[key], b[key], "{key}");
    }
    assert!(a["AR100"].as_f64().unwrap() > 0.0, "no box was found: {a}");
}

#[test]
fn dw_show_draws_predictions_and_curves() {
    let sandbox = Sandbox::new();
    sandbox.train(0, "w", &["train.epochs=1", "eval.score_threshold=0.01"]);
    let work = sandbox.path("w");
    let commands = [&["pred", work.as_str(), "-n", "3"][..], &["curves", work.as_str()]];
    for args in commands {
        let png = sandbox.path(&format!("{}.png", args[0]));
        run(Command::new(bin("dw-show")).args(args).args(["-o", &png]));
        let image = image::open(&png).unwrap().to_rgb8();
        assert!(image.width() > 300 && image.pixels().any(|p| p != image.get_pixel(0, 0)));
    }
}

/// One very wide image does not determine the size of the picture.
#[test]
fn dw_show_fits_elongated_images() {
    let sandbox = Sandbox::new();
    sandbox.train(0, "w", &["train.max_steps=1", "eval.every_epochs=0"]);
    let folder = sandbox.path("wide");
    std::fs::create_dir_all(format!("{folder}/val")).unwrap();
    image::RgbImage::from_pixel(9000, 30, image::Rgb([200, 20, 20]))
        .save(format!("{folder}/val/wide.png"))
        .unwrap();
    let of_run = sandbox.path("coco/annotations/instances_val2017.json");
    let of_run: Value = serde_json::from_slice(&std::fs::read(of_run).unwrap()).unwrap();
    let truth = json!({
        "images": [{"id": 1, "file_name": "wide.png", "width": 9000, "height": 30}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 5, 4000, 20],
            "area": 80000, "iscrowd": 0}],
        "categories": of_run["categories"],
    });
    let file = format!("{folder}/instances_val2017.json");
    std::fs::write(&file, truth.to_string()).unwrap();
    let (out, png) = (sandbox.path("packed"), sandbox.path("wide.png"));
    run(Command::new(bin("dw-pack")).args([
        "--annotations",
        &file,
        "--images",
        &format!("{folder}/val"),
        "--out",
        &out,
    ]));
    run(Command::new(bin("dw-show")).args([
        "pred",
        &sandbox.path("w"),
        "-n",
        "1",
        "--data",
        &out,
        "-o",
        &png,
    ]));
    let image = image::open(&png).unwrap();
    assert!((1280..1400).contains(&image.width()), "{}", image.width());
}

/// The best checkpoint is kept in addition to the newest one, also after a resume.
#[test]
fn the_best_checkpoint_is_kept() {
    let sandbox = Sandbox::new();
    sandbox.train(0, "w", &["train.epochs=1", "checkpoint.keep=1"]);
    let best = sandbox.checkpoints("w")[0].clone();
    // Make the first epoch the best one.
    let metrics = sandbox.path("w") + "/metrics.jsonl";
    let text = std::fs::read_to_string(&metrics).unwrap();
    let at = text.find("\"AP\":").unwrap();
    let end = at + text[at..].find(',').unwrap();
    std::fs::write(&metrics, format!("{}\"AP\":0.99{}", &text[..at], &text[end..])).unwrap();
    sandbox.train(0, "w", &["train.epochs=3", "checkpoint.keep=1"]);
    let left = sandbox.checkpoints("w");
    assert!(left.len() == 2 && left.contains(&best), "{left:?}");
}
