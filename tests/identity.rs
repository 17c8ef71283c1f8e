//! Whose run a work directory holds: two runs at once, runs started again with other settings, and
//! what every start leaves behind.

mod support;

use std::process::Command;
use std::time::Duration;

use support::{Job, Sandbox, assert_contains, bin, files_in, launch, run, run_failing, stderr};

const SHORT: [&str; 2] = ["eval.every_epochs=0", "train.max_steps=4"];

fn train(sandbox: &Sandbox, sets: &[&str], options: &[&str]) -> Command {
    let mut c = launch(0, "dw-train");
    c.args(sandbox.train_args("w", &[&SHORT[..], sets].concat())).args(options);
    c
}

fn text(sandbox: &Sandbox, name: &str) -> String {
    std::fs::read_to_string(sandbox.path("w") + "/" + name)
        .unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// A second run in a work directory ends with a message, and the first is not disturbed.
#[test]
fn two_runs_in_one_work_directory() {
    let sandbox = Sandbox::new();
    let many = ["eval.every_epochs=0", "train.max_steps=100000", "checkpoint.every_steps=50"];
    let first = Job::start(launch(2, "dw-train").args(sandbox.train_args("w", &many)));
    first.until(" INFO checkpoint ");
    let second = run_failing(launch(0, "dw-train").args(sandbox.train_args("w", &many)), 2);
    assert_contains(&second, &["another run works in this directory", "process ", "--work-dir"]);
    // A dry run touches nothing and is free to look.
    run(launch(0, "dw-train").args(sandbox.train_args("w", &many)).arg("--dry-run"));
    first.signal("USR1");
    let (code, said) = first.end(Duration::from_secs(30));
    assert_eq!(code, Some(75), "{said}");
    let steps: Vec<u64> = sandbox.rows("w").iter().map(|r| r["step"].as_u64().unwrap()).collect();
    assert!(steps.iter().copied().eq(1..=steps.len() as u64), "every step once, in order");
    assert!(!std::path::Path::new(&(sandbox.path("w") + "/run.lock")).exists());
}

/// The lock of a killed run is taken over; one of another host is explained.
#[test]
fn locks_that_were_left_behind() {
    let sandbox = Sandbox::new();
    let mut args = train(&sandbox, &[], &[]);
    let many = ["eval.every_epochs=0", "train.max_steps=100000"];
    let job = Job::start(launch(0, "dw-train").args(sandbox.train_args("w", &many)));
    job.until(" INFO step ");
    job.signal("KILL");
    job.end(Duration::from_secs(20));
    let lock = sandbox.path("w") + "/run.lock";
    let left = std::fs::read_to_string(&lock).unwrap();
    let out = args.output().unwrap();
    assert!(out.status.success(), "{}", stderr(&out));
    assert_contains(&stderr(&out), &["taking over from process "]);
    let mut owner: serde_json::Value = serde_json::from_str(&left).unwrap();
    owner["host"] = "node17".into();
    std::fs::write(&lock, owner.to_string()).unwrap();
    assert_contains(
        &run_failing(&mut train(&sandbox, &[], &[]), 2),
        &["node17", "if it has ended, remove ", "run.lock"],
    );
}

/// Other settings than the checkpoint's are listed key by key and refused, of a finished run as of an
/// unfinished one; with the option they are taken, and said.
#[test]
fn other_settings_are_refused_key_by_key() {
    let sandbox = Sandbox::new();
    run(&mut train(&sandbox, &[], &[]));
    let before =
        (text(&sandbox, "config.toml"), sandbox.rows("w").len(), files_in(&sandbox.path("w"), ""));
    for steps in ["train.max_steps=4", "train.max_steps=8"] {
        let said = run_failing(
            &mut train(&sandbox, &[steps, "assign.formula=paper", "train.lr=0.5"], &[]),
            2,
        );
        assert_contains(
            &said,
            &["assign.formula: \"released\" -> \"paper\"", "train.lr: 0.02 -> 0.5"],
        );
        assert_contains(&said, &["--resume-with-changes", "--work-dir", "config.toml"]);
        assert_contains(
            &run_failing(&mut train(&sandbox, &[steps, "train.images_per_rank=3"], &[]), 2),
            &["global batch", "2 -> 3"],
        );
        assert_contains(
            &run_failing(&mut train(&sandbox, &[steps, "train.seed=9"], &[]), 2),
            &["train.seed: 0 -> 9"],
        );
        assert_contains(
            &run_failing(&mut train(&sandbox, &[steps], &["--init", "imagenet"]), 2),
            &["model.init"],
        );
    }
    assert_eq!(
        (text(&sandbox, "config.toml"), sandbox.rows("w").len(), files_in(&sandbox.path("w"), "")),
        before
    );
    let changed = ["train.max_steps=8", "train.lr=0.5", "checkpoint.keep=5"];
    let out = train(&sandbox, &changed, &["--resume-with-changes"]).output().unwrap();
    assert!(out.status.success(), "{}", stderr(&out));
    assert_contains(
        &stderr(&out),
        &["alter the result", "train.lr: 0.02 -> 0.5", "without effect", "train.max_steps: 4 -> 8"],
    );
    assert_eq!(text(&sandbox, "config.toml"), before.0, "the first start's settings stay");
    assert_contains(&text(&sandbox, "config-2.toml"), &["lr = 0.5"]);
    assert_eq!(
        sandbox.rows("w").iter().map(|r| r["attempt"].as_u64().unwrap()).collect::<Vec<_>>(),
        [1, 1, 1, 1, 2, 2, 2, 2]
    );
    // From here on the changed settings are the run's.
    run(&mut train(&sandbox, &changed, &[]));
    assert!(
        !std::path::Path::new(&(sandbox.path("w") + "/config-3.toml")).exists(),
        "nothing was left to do"
    );
}

/// Another data set in the same default work directory is refused, with the option to give.
#[test]
fn another_data_set_in_the_same_work_directory() {
    let (sandbox, other) = (Sandbox::new(), Sandbox::with_images(9, 3));
    run(&mut train(&sandbox, &[], &[]));
    let args =
        ["smoke", "--device", "cpu", "--data", &other.shards(), "--work-dir", &sandbox.path("w")];
    let said = run_failing(launch(0, "dw-train").args(args), 2);
    assert_contains(&said, &["training data (fingerprint", "--work-dir"]);
}

/// Another number of ranks keeps the global batch, however often the same command is given.
#[test]
fn ranks_may_change_and_the_batch_stays() {
    let sandbox = Sandbox::new();
    let sets = |steps| vec!["eval.every_epochs=0", "train.images_per_rank=4", steps];
    sandbox.train(1, "w", &sets("train.max_steps=3"));
    for steps in ["train.max_steps=5", "train.max_steps=7"] {
        let out =
            launch(2, "dw-train").args(sandbox.train_args("w", &sets(steps))).output().unwrap();
        assert!(out.status.success(), "{}", stderr(&out));
        assert_contains(
            &stderr(&out),
            &["the global batch of 4 images is kept: 2 on each of 2 ranks"],
        );
    }
    assert_eq!(sandbox.rows("w").len(), 7);
}

/// After a kill the metrics hold each step once, in order, with the start that computed it.
#[test]
fn undone_steps_leave_the_metrics() {
    let sandbox = Sandbox::new();
    let sets = ["eval.every_epochs=0", "checkpoint.every_steps=4", "train.max_steps=15"];
    let mut killed = launch(0, "dw-train");
    killed.args(sandbox.train_args("w", &sets)).env("DW_FAULT", "kill@0:11");
    Job::start(&mut killed).end(Duration::from_mins(1));
    let newest = sandbox.newest_step("w");
    assert!(newest == 4 || newest == 8, "a checkpoint before step 11: {newest}");
    sandbox.train(0, "w", &sets);
    let rows = sandbox.rows("w");
    assert!(rows.iter().map(|r| r["step"].as_u64().unwrap()).eq(1..=15));
    let second = rows.iter().filter(|r| r["attempt"] == 2).count();
    assert_eq!(second, 15 - newest, "the second start went on from step {newest}");
    sandbox.train(0, "whole", &sets);
    assert_eq!(sandbox.losses("w"), sandbox.losses("whole"));
}

/// Steps and epochs have one numbering: rows, evaluations and checkpoints agree.
#[test]
fn rows_and_checkpoints_count_alike() {
    let sandbox = Sandbox::new();
    sandbox.train(0, "w", &["train.epochs=2"]);
    let rows = sandbox.rows("w");
    let ap: Vec<_> = rows.iter().filter(|r| r.contains_key("AP")).collect();
    let last = sandbox.newest_step("w") as u64;
    assert_eq!(
        (ap.len(), ap[1]["step"].as_u64(), ap[1]["epoch"].as_u64()),
        (2, Some(last), Some(2))
    );
    assert_eq!(
        rows.iter().filter(|r| r.contains_key("loss")).map(|r| r["epoch"].as_u64().unwrap()).max(),
        Some(2)
    );
    assert_eq!(rows[0]["step"], 1);
}

/// Checkpoints come by time, too.
#[test]
fn checkpoints_by_time() {
    let sandbox = Sandbox::new();
    let sets =
        ["eval.every_epochs=0", "train.max_steps=40", "train.epochs=100", "checkpoint.keep=100"];
    sandbox.train(
        0,
        "w",
        &[&sets[..], &["checkpoint.every_steps=1000", "checkpoint.every_minutes=0.001"]].concat(),
    );
    assert!(sandbox.checkpoints("w").len() > 3);
    sandbox.train(
        0,
        "v",
        &[&sets[..], &["checkpoint.every_steps=1000", "checkpoint.every_minutes=0"]].concat(),
    );
    assert_eq!(sandbox.checkpoints("v").len(), 1);
}

/// A run is evaluated from any folder, and its files can be read by whoever can read the others.
#[test]
fn a_run_is_found_from_elsewhere() {
    use std::os::unix::fs::PermissionsExt;
    let sandbox = Sandbox::new();
    let mut c = launch(0, "dw-train");
    let args = [
        "smoke",
        "--device",
        "cpu",
        "--data",
        "coco/shards",
        "--work-dir",
        "w",
        "--set",
        "train.epochs=1",
    ];
    run(c.current_dir(sandbox.path("")).args(args));
    run(Command::new(bin("dw-eval"))
        .current_dir("/")
        .arg(sandbox.path("w"))
        .args(["--device", "cpu"]));
    let folder = sandbox.checkpoints("w").remove(0);
    let modes: Vec<u32> = files_in(folder.to_str().unwrap(), "")
        .iter()
        .map(|f| f.metadata().unwrap().permissions().mode())
        .collect();
    assert!(modes.iter().all(|m| *m == modes[0]), "{modes:?}");
}

/// `train.precision = "auto"` is settled before anything is compared or saved, so a run keeps its own.
#[test]
fn precision_is_part_of_the_run() {
    let sandbox = Sandbox::new();
    for (set, words) in [
        ("train.precision=tf32", ["train.precision", "only GPUs have TF32"]),
        ("train.precision=bf16", ["train.precision", "not in this version"]),
        ("train.precision=fp16", ["fp16", "tf32"]),
    ] {
        assert_contains(&run_failing(&mut train(&sandbox, &[set], &[]), 2), &words);
    }
    run(&mut train(&sandbox, &["train.max_steps=2", "train.precision=f32"], &[]));
    assert_contains(&text(&sandbox, "config.toml"), &["precision = \"f32\""]);
    // What `auto` stands for on a CPU.
    run(&mut train(&sandbox, &["train.precision=auto"], &[]));
    assert_eq!(sandbox.steps("w").len(), 4);
    let e = run_failing(&mut train(&sandbox, &["train.precision=f64"], &[]), 2);
    assert_contains(&e, &["train.precision: \"f32\" -> \"f64\""]);
}

/// libtorch's deterministic algorithms change nothing where a run is deterministic anyway.
#[test]
fn deterministic_on_a_cpu_is_the_same_run() {
    let sandbox = Sandbox::new();
    let losses = |work: &str, set: &str| {
        run(launch(0, "dw-train").args(sandbox.train_args(work, &[&SHORT[..], &[set]].concat())));
        sandbox.losses(work)
    };
    assert_eq!(losses("a", "train.deterministic=false"), losses("b", "train.deterministic=true"));
}
