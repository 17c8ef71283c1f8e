//! Mistakes of users: each ends with the right code and words that help, and loses nothing.

mod support;

use std::process::Command;

use support::{Sandbox, assert_contains, bin, files_in, flip_bit, launch, run, run_failing};

fn train(sandbox: &Sandbox, sets: &[&str]) -> Command {
    let mut c = launch(0, "dw-train");
    c.args(sandbox.train_args("w", sets));
    c
}

#[test]
fn configuration_mistakes_name_key_and_nearest() {
    let sandbox = Sandbox::new();
    assert_contains(
        &run_failing(&mut train(&sandbox, &["train.learning_rate=1"]), 2),
        &["unknown key `train.learning_rate`", "`train.lr`"],
    );
    assert_contains(
        &run_failing(&mut train(&sandbox, &["data.flip=often"]), 2),
        &["`data.flip`", "expected a number", "often"],
    );
    let file = sandbox.path("my.toml");
    std::fs::write(&file, "base = \"smoke\"\n[model]\nwidht = 0.5\n").unwrap();
    let mut c = launch(0, "dw-train");
    assert_contains(
        &run_failing(c.args([&file, "--data", &sandbox.shards()]), 2),
        &["my.toml", "unknown key `model.widht`", "`model.width`"],
    );
    std::fs::write(&file, "base = \"smoke\"\n[model\n").unwrap();
    assert_contains(&run_failing(launch(0, "dw-train").arg(&file), 2), &["my.toml", "line 2"]);
    assert_contains(
        &run_failing(launch(0, "dw-train").arg("no_such_config"), 2),
        &["no_such_config", "dw_r50_fpn_1x"],
    );
}

/// Under mpirun one mistake is told once, not once a rank.
#[test]
fn mistakes_are_told_once_under_mpirun() {
    let sandbox = Sandbox::new();
    let text =
        run_failing(launch(2, "dw-train").args(sandbox.train_args("w", &["train.epoch=1"])), 2);
    assert_eq!(text.matches("error: ").count(), 1, "{text}");
    assert_contains(&text, &["`train.epochs`"]);
}

#[test]
fn missing_data_and_splits() {
    let sandbox = Sandbox::new();
    let mut c = launch(0, "dw-train");
    assert_contains(
        &run_failing(c.args(["smoke", "--data", "/no/such/shards"]), 2),
        &["/no/such/shards", "dw-pack"],
    );
    assert_contains(
        &run_failing(&mut train(&sandbox, &["data.train_split=test"]), 2),
        &["no split `test`", "train2017, val2017"],
    );
}

#[test]
fn damaged_and_cut_shards() {
    let sandbox = Sandbox::new();
    let shard = &files_in(&sandbox.shards(), ".dwshard")[0];
    let whole = std::fs::read(shard).unwrap();
    std::fs::write(shard, &whole[..whole.len() - 100]).unwrap();
    assert_contains(
        &run_failing(&mut train(&sandbox, &[]), 3),
        &[".dwshard", "cut", &whole.len().to_string()],
    );
    std::fs::write(shard, &whole).unwrap();
    flip_bit(&files_in(&sandbox.shards(), ".dwindex")[0]);
    assert_contains(&run_failing(&mut train(&sandbox, &[]), 3), &["train2017.dwindex", "damaged"]);
}

#[test]
fn checkpoints_of_another_architecture_or_damaged() {
    let sandbox = Sandbox::new();
    sandbox.train(0, "w", &["train.max_steps=2", "eval.every_epochs=0"]);
    let text = run_failing(&mut train(&sandbox, &["train.max_steps=4", "model.channels=64"]), 2);
    assert_contains(&text, &["model.channels: 32 -> 64", "hint:"]);
    let folder = &sandbox.checkpoints("w")[0];
    let eval = || {
        let mut c = launch(0, "dw-eval");
        c.arg(folder);
        c
    };
    flip_bit(&folder.join("model.safetensors"));
    assert_contains(&run_failing(&mut eval(), 3), &["model.safetensors", "damaged"]);
    std::fs::remove_file(folder.join("DONE")).unwrap();
    assert_contains(&run_failing(&mut eval(), 3), &["not a whole checkpoint", "DONE"]);
    assert_contains(
        &run_failing(launch(0, "dw-eval").arg("/no/such"), 2),
        &["/no/such", "expected a folder"],
    );
    // The damaged one is passed over, and the run starts anew.
    run(&mut train(&sandbox, &["train.max_steps=2", "eval.every_epochs=0"]));
}

/// Pain 9: other categories are refused, with the first that differs.
#[test]
fn data_of_other_categories() {
    let sandbox = Sandbox::new();
    sandbox.train(0, "w", &["train.max_steps=1", "eval.every_epochs=0"]);
    let other = sandbox.path("other");
    run(Command::new(bin("dw-pack")).args([
        "synth",
        &other,
        "--images",
        "2",
        "--val",
        "2",
        "--classes",
        "2",
        "--side",
        "96",
    ]));
    run(Command::new(bin("dw-pack")).arg(&other));
    let mut c = launch(0, "dw-eval");
    let text = run_failing(c.args([&sandbox.path("w"), "--data", &(other + "/shards")]), 3);
    assert_contains(&text, &["categories of the checkpoint and the data differ", "triangle"]);
}

#[test]
fn results_and_truth_files() {
    let sandbox = Sandbox::new();
    let gt = sandbox.path("coco/annotations/instances_val2017.json");
    let dt = sandbox.path("dt.json");
    let coco = |text: &str, code: i32| {
        std::fs::write(&dt, text).unwrap();
        run_failing(launch(0, "dw-eval").args(["coco", "--gt", &gt, "--dt", &dt]), code)
    };
    assert_contains(&coco("{}", 3), &["dt.json", "expected a list"]);
    assert_contains(
        &coco(r#"[{"image_id":5,"category_id":1,"bbox":[0,0,1,1],"score":1}]"#, 3),
        &["results[0]", "`image_id`", "found 5"],
    );
    assert_contains(
        &coco(r#"[{"image_id":1000001,"category_id":1,"bbox":[0,0,1],"score":1}]"#, 3),
        &["results[0]", "`bbox`", "found 3"],
    );
    assert_contains(
        &coco(r#"[{"image_id":1000001,"category_id":1,"bbox":[0,0,1,1]}]"#, 3),
        &["results[0]", "score"],
    );
    assert_contains(&coco("[{", 3), &["results[0]", "the file ends", "hint: "]);
    std::fs::write(&dt, "[]").unwrap();
    assert!(
        run(launch(0, "dw-eval").args(["coco", "--gt", &gt, "--dt", &dt, "--json"]))
            .contains("\"AP\":0.0")
    );
}

#[test]
fn dry_run_prints_the_settings_and_trains_nothing() {
    let sandbox = Sandbox::new();
    let mut c = train(&sandbox, &["train.lr=0.04"]);
    let text = run(c.arg("--dry-run"));
    assert_contains(&text, &["learning rate", "0.02 (0.04 at 4 images", "parameters"]);
    assert!(!std::path::Path::new(&sandbox.path("w")).exists());
}

#[test]
fn every_binary_has_help_with_examples_and_versions() {
    for name in ["dw-weights", "dw-pack"] {
        assert_contains(&run(Command::new(bin(name)).arg("--help")), &["Examples:", name]);
        assert_contains(&run(Command::new(bin(name)).arg("--version")), &[name, "("]);
    }
    for name in ["dw-train", "dw-eval", "dw-show"] {
        assert_contains(&run(Command::new(bin(name)).arg("--help")), &["Examples:", name]);
        assert_contains(
            &run(Command::new(bin(name)).arg("--version")),
            &["libtorch 2.11.0", "MPI:", "NCCL:"],
        );
    }
}

/// A new start in an old work directory must not cost the old run's checkpoints.
#[test]
fn a_new_start_never_overwrites_an_old_run() {
    let sandbox = Sandbox::new();
    sandbox.train(0, "w", &["train.max_steps=4", "eval.every_epochs=0"]);
    let before = (sandbox.checkpoints("w"), sandbox.rows("w").len());
    let mut c = train(&sandbox, &["train.max_steps=2", "eval.every_epochs=0"]);
    assert_contains(
        &run_failing(c.args(["--resume", "none"]), 2),
        &["checkpoint of step 4", "choose another --work-dir"],
    );
    assert_eq!((sandbox.checkpoints("w"), sandbox.rows("w").len()), before);
}

/// Pain 12: what decides the order cannot change on the way.
#[test]
fn a_run_goes_on_only_with_its_own_data_settings() {
    let sandbox = Sandbox::new();
    sandbox.train(0, "w", &["train.max_steps=2", "eval.every_epochs=0"]);
    let text = run_failing(
        &mut train(&sandbox, &["train.max_steps=4", "eval.every_epochs=0", "data.limit=5"]),
        2,
    );
    assert_contains(&text, &["cannot go on", "data.limit: 0 -> 5", "config.toml"]);
    let mut other = launch(0, "dw-train");
    let text = run_failing(other.args(sandbox.train_args("w2", &["data.canonical_nodes=3"])), 2);
    assert_contains(&text, &["data.canonical_nodes", "divides the global batch (2)"]);
}

/// More threads than four a core are refused before any starts; a dry run only warns.
#[test]
fn too_many_threads() {
    let sandbox = Sandbox::new();
    for key in ["train.threads", "data.workers"] {
        let set = format!("{key}=100000");
        assert_contains(
            &run_failing(&mut train(&sandbox, &[&set]), 2),
            &[key, "100000", "cores", "hint:"],
        );
        let dry = train(&sandbox, &[&set]).arg("--dry-run").output().unwrap();
        assert!(
            dry.status.success() && support::stderr(&dry).contains(key),
            "{}",
            support::stderr(&dry)
        );
    }
    let cores = std::thread::available_parallelism().unwrap().get();
    let some = format!("train.threads={}", cores + 1);
    let out =
        train(&sandbox, &[&some, "train.max_steps=1", "eval.every_epochs=0"]).output().unwrap();
    assert!(out.status.success(), "{}", support::stderr(&out));
    assert_contains(
        &support::stderr(&out),
        &["WARN train.threads", "more threads than the machine has cores"],
    );
    // A configuration of a large machine is evaluated on a small one.
    run(launch(0, "dw-eval").args([&sandbox.path("w"), "--set", "train.threads=4000"]));
}

/// A machine that gives no more threads: code 5, and no hanging process.
#[test]
fn threads_that_the_machine_refuses() {
    let sandbox = Sandbox::new();
    let args =
        sandbox.train_args("w", &["train.max_steps=1", "eval.every_epochs=0", "data.workers=8"]);
    // Every thread's stack is larger than the memory that the process may map.
    let out = Command::new(bin("dw-train"))
        .args(args)
        .env("RUST_MIN_STACK", (1u64 << 46).to_string())
        .output()
        .unwrap();
    let text = support::stderr(&out);
    assert_eq!(out.status.code(), Some(5), "{text}");
    assert_contains(&text, &["thread", "hint:"]);
}

/// Splits by other names: named in the error, or taken where there is no doubt.
#[test]
fn splits_called_train_and_val() {
    let sandbox = Sandbox::new();
    for (old, new) in [("train2017", "train"), ("val2017", "valid")] {
        let coco = |name: &str| sandbox.path("coco") + "/" + name;
        std::fs::rename(coco(old), coco(new)).unwrap();
        let json = |name: &str| coco(&format!("annotations/instances_{name}.json"));
        std::fs::rename(json(old), json(new)).unwrap();
    }
    std::fs::remove_dir_all(sandbox.shards()).unwrap();
    run(Command::new(bin("dw-pack")).arg(sandbox.path("coco")));
    let out = train(&sandbox, &["train.epochs=1"]).output().unwrap();
    let text = support::stderr(&out);
    assert!(out.status.success(), "{text}");
    assert_contains(&text, &["data.train_split: taking `train`", "data.val_split: taking `valid`"]);
    assert_contains(
        &run_failing(&mut train(&sandbox, &["data.train_split=train2017"]), 2),
        &["no split `train2017`", "data.train_split=train"],
    );
    // Two that could be meant.
    let json = |name: &str| sandbox.path(&format!("coco/annotations/instances_{name}.json"));
    std::fs::copy(json("train"), json("train_b")).unwrap();
    run(Command::new(bin("dw-pack")).arg(sandbox.path("coco")));
    assert_contains(
        &run_failing(&mut train(&sandbox, &[]), 2),
        &["train, train_b", "data.train_split="],
    );
}

/// Numbers that no training can use, with their key.
#[test]
fn numbers_that_are_not_finite_or_come_too_late() {
    let sandbox = Sandbox::new();
    for (set, words) in [
        ("assign.beta=nan", "assign.beta"),
        ("train.lr=inf", "train.lr"),
        ("train.lr_steps=[5]", "train.lr_steps"),
        ("train.accumulate=4", "not accumulated"),
    ] {
        assert_contains(&run_failing(&mut train(&sandbox, &[set]), 2), &[words]);
    }
    let never = ["assign.prior=threshold", "assign.prior_value=1.5"];
    assert_contains(
        &run_failing(&mut train(&sandbox, &never), 2),
        &["assign.prior_value", "above 0 and below 1"],
    );
}

/// A threshold that no point passes: every step is counted, and fifty of them are explained.
#[test]
fn a_threshold_that_no_point_passes() {
    let sandbox = Sandbox::new();
    let sets = [
        "assign.prior=threshold",
        "assign.prior_value=0.999999",
        "eval.every_epochs=0",
        "train.max_steps=55",
        "train.epochs=90",
    ];
    let out = train(&sandbox, &sets).output().unwrap();
    let text = support::stderr(&out);
    assert!(out.status.success(), "{text}");
    assert_contains(
        &text,
        &[
            "excludes every point of boxes",
            "no point has had a positive weight for 50 steps",
            "55 of 55 steps",
        ],
    );
    assert!(sandbox.rows("w").iter().all(|r| r["no_positive"] == 1));
    sandbox.train(0, "v", &["eval.every_epochs=0", "train.max_steps=3"]);
    assert!(sandbox.rows("v").iter().all(|r| r["no_positive"] == 0));
}

/// Output files are looked at before the evaluation, and the numbers come whatever becomes of them.
#[test]
fn results_into_a_missing_folder() {
    let sandbox = Sandbox::new();
    sandbox.train(0, "w", &["train.epochs=1"]);
    let mut c = launch(0, "dw-eval");
    let text =
        run_failing(c.args([&sandbox.path("w"), "--dt-out", &sandbox.path("no/such/dt.json")]), 2);
    assert_contains(&text, &["--dt-out", "no/such/dt.json", "hint:"]);
    assert!(!text.contains("images of val2017"), "before the evaluation: {text}");
}
