//! Training and evaluation with real processes: one, several, more than there are cores.

mod support;

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Place, bin, damage, fails, files, launch, run, says};

#[test]
fn trains_evaluates_and_saves_on_any_number_of_ranks() {
    let place = Place::new();
    for ranks in [0, 1, 2, 3] {
        let work = format!("work{ranks}");
        place.train(ranks, &work, &["train.epochs=1"]);
        let steps = place.steps(&work);
        let batch = 2 * ranks.max(1);
        assert!(steps.len() >= 13 / batch && steps.len() <= 14usize.div_ceil(batch), "{} steps on {ranks} ranks", steps.len());
        for key in ["step", "epoch", "loss", "lr", "data_s", "step_s", "images_per_s", "loss_cls_pos", "loss_loc", "loss_cls_neg"] {
            assert!(steps.iter().all(|s| s[key].is_number()), "{key}");
        }
        let ap = place.rows(&work).into_iter().find(|r| r.contains_key("AP")).expect("a row of the evaluation");
        assert!(ap["AP50"].is_number());
        let checkpoints = files(&(place.path(&work) + "/checkpoints"), "");
        assert_eq!(checkpoints.len(), 1);
        for f in ["model.safetensors", "momentum.safetensors", "state.json", "manifest.json", "DONE"] {
            assert!(std::fs::metadata(checkpoints[0].join(f)).unwrap().len() > 0, "{f}");
        }
        assert!(std::fs::read_to_string(place.path(&work) + "/config.toml").unwrap().contains("[train]"));
    }
}

/// Pain 11: the same seed gives the same losses, to the last bit, with threads and ranks as they come.
#[test]
fn twenty_steps_are_the_same_twice() {
    let place = Place::new();
    for (ranks, network) in [(1, "model.norm=gn"), (2, "model.norm=gn"), (2, "model.dcn_last_conv=true")] {
        let sets = ["eval.every_epochs=0", "train.max_steps=20", network];
        let (a, b) = (format!("a{ranks}{network}"), format!("b{ranks}{network}"));
        place.train(ranks, &a, &sets);
        place.train(ranks, &b, &sets);
        assert_eq!(place.losses(&a).len(), 20);
        assert_eq!(place.losses(&a), place.losses(&b), "{ranks} ranks, {network}");
    }
}

/// Pain 12: ten steps, a stop and ten more are twenty steps, to the last bit.
#[test]
fn resume_is_bit_exact() {
    let place = Place::new();
    for (ranks, norm) in [(1, "gn"), (2, "gn"), (2, "bn")] {
        let norm = format!("model.norm={norm}");
        let (whole, cut) = (format!("whole{ranks}{norm}"), format!("cut{ranks}{norm}"));
        let sets = |steps| vec!["eval.every_epochs=0", norm.as_str(), steps];
        place.train(ranks, &whole, &sets("train.max_steps=20"));
        place.train(ranks, &cut, &sets("train.max_steps=10"));
        place.train(ranks, &cut, &sets("train.max_steps=20"));
        assert_eq!(place.losses(&whole).len(), 20);
        assert_eq!(place.losses(&whole), place.losses(&cut), "{ranks} ranks, {norm}");
        assert_ne!(place.losses(&whole)[10], place.losses(&whole)[11], "the loss moves");
    }
}

/// Pain 13: the same global batches on one rank and on two; equal losses where the padded shapes are equal.
#[test]
fn losses_do_not_depend_on_the_number_of_ranks() {
    let place = Place::new();
    let sets = |images| vec!["eval.every_epochs=0", "train.max_steps=6", "data.group=4", images];
    place.train(1, "one", &sets("train.images_per_rank=4"));
    place.train(2, "two", &sets("train.images_per_rank=2"));
    for (a, b) in place.steps("one").iter().zip(place.steps("two")) {
        let (a, b) = (a["loss"].as_f64().unwrap(), b["loss"].as_f64().unwrap());
        assert!((a - b).abs() <= 1e-4 * a, "step losses {a} and {b}");
    }
}

/// Pain 13: a run goes on with another number of ranks as long as they can share the global batch.
#[test]
fn resume_on_another_number_of_ranks() {
    let place = Place::new();
    let sets = |steps| vec!["eval.every_epochs=0", "data.group=4", steps];
    place.train(2, "w", &sets("train.max_steps=4"));
    place.train(1, "w", &sets("train.max_steps=6"));
    assert_eq!(place.steps("w").len(), 6);
    let text = fails(launch(3, "dw-train").args(place.train_args("w", &sets("train.max_steps=8"))), 2);
    says(&text, &["global batch of 4", "1, 2, 4"]);
}

/// Pain 14: USR1 saves on all ranks together and ends with code 75; running again goes on.
#[test]
fn usr1_saves_and_ends_with_75() {
    let place = Place::new();
    let sets = ["eval.every_epochs=0", "train.max_steps=4000", "checkpoint.every_steps=100000"];
    let mut job = launch(2, "dw-train").args(place.train_args("w", &sets)).stderr(Stdio::null()).spawn().unwrap();
    let metrics = place.path("w") + "/metrics.jsonl";
    let began = Instant::now();
    while std::fs::metadata(&metrics).map_or(0, |m| m.len()) == 0 {
        assert!(began.elapsed() < Duration::from_mins(1), "no step within a minute");
        std::thread::sleep(Duration::from_millis(50));
    }
    run(std::process::Command::new("kill").args(["-USR1", &job.id().to_string()]));
    let code = job.wait().unwrap().code();
    assert_eq!(code, Some(75));
    let done = files(&(place.path("w") + "/checkpoints"), "");
    assert_eq!(done.len(), 1, "{done:?}");
    let steps = place.steps("w").len();
    let more = format!("train.max_steps={}", steps + 2);
    place.train(2, "w", &["eval.every_epochs=0", &more]);
    assert_eq!(place.steps("w").len(), steps + 2);
}

/// Pain 2: a rank that is killed takes the job with it.
#[test]
fn a_killed_rank_ends_the_job() {
    let place = Place::new();
    let args = place.train_args("w", &["eval.every_epochs=0", "train.max_steps=100000"]);
    let mut job = launch(2, "dw-train").args(args).stderr(Stdio::null()).spawn().unwrap();
    let metrics = place.path("w") + "/metrics.jsonl";
    let began = Instant::now();
    while std::fs::metadata(&metrics).map_or(0, |m| m.len()) == 0 {
        assert!(began.elapsed() < Duration::from_mins(1), "no step within a minute");
        std::thread::sleep(Duration::from_millis(50));
    }
    run(std::process::Command::new("pkill").args(["-KILL", "-n", "-f", &place.path("w")]));
    let killed = Instant::now();
    let status = job.wait().unwrap();
    assert!(!status.success());
    assert!(killed.elapsed() < Duration::from_secs(30), "the job outlived its rank by {:?}", killed.elapsed());
}

/// Pain 7: a loss that is not finite stops all ranks and names step, terms and images.
#[test]
fn a_loss_that_is_not_finite_is_told() {
    let place = Place::new();
    let sets = ["train.lr=1e30", "train.warmup_steps=0", "train.clip_norm=0", "eval.every_epochs=0"];
    let text = fails(launch(2, "dw-train").args(place.train_args("w", &sets)), 3);
    says(&text, &["step ", "is not a finite number", "loss_cls_neg", "images [", "hint: lower train.lr"]);
}

/// Pains 2 and 19: a damaged shard ends the whole job, with shard, record and offset.
#[test]
fn a_damaged_shard_ends_the_job() {
    let place = Place::new();
    damage(&files(&place.shards(), ".dwshard")[0]);
    let text = fails(launch(2, "dw-train").args(place.train_args("w", &["eval.every_epochs=0"])), 3);
    says(&text, &[".dwshard", "record", "at offset", "damaged"]);
}

/// Pain 20: every image is evaluated once on any number of ranks; the numbers are the same to the last digit, and
/// the results file gives them again.
#[test]
fn evaluation_does_not_depend_on_the_number_of_ranks() {
    let place = Place::of(40, 7);
    place.train(2, "w", &["train.epochs=8", "eval.every_epochs=0", "eval.score_threshold=0.01"]);
    let eval = |ranks: usize| {
        let dt = place.path(&format!("dt{ranks}.json"));
        let json = run(launch(ranks, "dw-eval").args([&place.path("w"), "--device", "cpu", "--json", "--dt-out", &dt]));
        (json, std::fs::read_to_string(dt).unwrap())
    };
    let alone = eval(0);
    for ranks in [1, 2, 3] {
        assert_eq!(eval(ranks), alone, "{ranks} ranks");
    }
    let gt = place.path("coco/annotations/instances_val2017.json");
    let again = run(launch(0, "dw-eval").args(["coco", "--gt", &gt, "--dt", &place.path("dt0.json"), "--json"]));
    let (a, b): (Value, Value) = (serde_json::from_str(&alone.0).unwrap(), serde_json::from_str(&again).unwrap());
    for key in ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"] {
        assert_eq!(a[key], b[key], "{key}");
    }
    assert!(a["AR100"].as_f64().unwrap() > 0.0, "something was found: {a}");
    for (out, args) in [("pred.png", vec!["pred", "W", "-n", "3"]), ("curves.png", vec!["curves", "W"])] {
        let png = place.path(out);
        let args: Vec<String> = args.into_iter().map(|a| if a == "W" { place.path("w") } else { a.to_owned() }).collect();
        run(std::process::Command::new(bin("dw-show")).args(args).args(["-o", &png]));
        let image = image::open(&png).unwrap().to_rgb8();
        assert!(image.width() > 300 && image.pixels().any(|p| p != image.get_pixel(0, 0)));
    }
}

/// The best checkpoint outlives newer ones, also over a resume.
#[test]
fn the_best_checkpoint_is_kept() {
    let place = Place::new();
    place.train(0, "w", &["train.epochs=1", "checkpoint.keep=1"]);
    let folder = place.path("w") + "/checkpoints";
    let best = files(&folder, "")[0].clone();
    // Say that the first epoch was very good.
    let metrics = place.path("w") + "/metrics.jsonl";
    let text = std::fs::read_to_string(&metrics).unwrap();
    let at = text.find("\"AP\":").unwrap();
    let end = at + text[at..].find(',').unwrap();
    std::fs::write(&metrics, format!("{}\"AP\":0.99{}", &text[..at], &text[end..])).unwrap();
    place.train(0, "w", &["train.epochs=3", "checkpoint.keep=1"]);
    let left = files(&folder, "");
    assert!(left.len() == 2 && left.contains(&best), "{left:?}");
}
