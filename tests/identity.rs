//! A work directory belongs to one run: two runs at once, restarts with other settings, and the
//! files that each start writes.

mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::{
    Job, Sandbox, assert_contains, bin, files_in, launch, output, run, run_failing, stderr,
};

const SHORT: [&str; 2] = ["eval.every_epochs=0", "train.max_steps=4"];

fn train(sandbox: &Sandbox, sets: &[&str], options: &[&str]) -> Command {
    let mut c = launch(0, "dw-train");
    c.args(sandbox.train_args("w", &[&SHORT[..], sets].concat())).args(options);
    c
}

/// Text of a file in the work directory `w`.
fn text(sandbox: &Sandbox, name: &str) -> String {
    let path = sandbox.path("w") + "/" + name;
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The process that holds the work directory `w`, from `run.lock`.
fn lock_owner(sandbox: &Sandbox) -> Value {
    serde_json::from_str(&text(sandbox, "run.lock")).unwrap()
}

/// Level, such as `WARN`, of the log entry that contains `key`.
fn level_of<'a>(log: &'a str, key: &str) -> Option<&'a str> {
    let words = log[..log.find(key)?].split_whitespace();
    words.rev().find(|w| ["ERROR", "WARN", "INFO"].contains(w))
}

/// A second run in a work directory ends with an error, and the first is not disturbed.
#[test]
fn a_second_run_in_the_same_work_directory_is_refused() {
    let sandbox = Sandbox::new();
    let long = ["eval.every_epochs=0", "train.max_steps=100000", "checkpoint.every_steps=50"];
    let first = Job::start(launch(2, "dw-train").args(sandbox.train_args("w", &long)));
    first.wait_until("a checkpoint", || sandbox.newest_step("w") > 0);
    let owner = format!("process {}", lock_owner(&sandbox)["pid"]);
    let refused = run_failing(launch(0, "dw-train").args(sandbox.train_args("w", &long)), 2);
    assert_contains(&refused, &[&sandbox.path("w"), &owner, "hint:", "--work-dir"]);
    // A dry run writes nothing and does not need the lock.
    run(launch(0, "dw-train").args(sandbox.train_args("w", &long)).arg("--dry-run"));
    first.signal("USR1");
    let (code, log) = first.wait(Duration::from_secs(30));
    assert_eq!(code, Some(75), "{log}");
    let steps: Vec<u64> = sandbox.rows("w").iter().map(|r| r["step"].as_u64().unwrap()).collect();
    assert!(steps.iter().copied().eq(1..=steps.len() as u64), "every step once, in order");
    assert!(!Path::new(&(sandbox.path("w") + "/run.lock")).exists());
}

/// The lock of a killed run is taken over, even if the run was in another container on the same
/// machine. If the lock is from another machine, the run is refused, and the error names the file
/// to remove.
#[test]
fn stale_locks_are_taken_over_unless_from_another_machine() {
    let sandbox = Sandbox::new();
    let long = ["eval.every_epochs=0", "train.max_steps=100000"];
    let job = Job::start(launch(0, "dw-train").args(sandbox.train_args("w", &long)));
    job.wait_until("the first step", || !sandbox.rows_so_far("w").is_empty());
    job.signal("KILL");
    job.wait(Duration::from_secs(20));
    let mut owner = lock_owner(&sandbox);
    let log = stderr(&output(&mut train(&sandbox, &[], &[])));
    assert_contains(&log, &["run.lock", &format!("process {}", owner["pid"])]);
    let lock = sandbox.path("w") + "/run.lock";
    owner["host"] = "container".into();
    std::fs::write(&lock, owner.to_string()).unwrap();
    let log = stderr(&output(&mut train(&sandbox, &[], &[])));
    assert_contains(&log, &["run.lock", "container"]);
    (owner["host"], owner["boot"]) = ("node17".into(), "another".into());
    std::fs::write(&lock, owner.to_string()).unwrap();
    let refused = run_failing(&mut train(&sandbox, &[], &[]), 2);
    assert_contains(&refused, &["node17", "hint:", &lock, "--work-dir"]);
    // A job that SLURM has requeued on another node goes on; another job, or another run of the
    // same job, does not.
    owner["slurm_job"] = "7".into();
    let text = owner.to_string();
    std::fs::write(&lock, &text).unwrap();
    for job in [None, Some("8"), Some("7")] {
        let mut other = train(&sandbox, &[], &[]);
        other.env_remove("SLURM_JOB_ID").envs(job.map(|id| ("SLURM_JOB_ID", id)));
        assert_contains(&run_failing(&mut other, 2), &["node17"]);
        assert_eq!(std::fs::read_to_string(&lock).unwrap(), text);
    }
    let mut again = train(&sandbox, &[], &[]);
    output(again.env("SLURM_JOB_ID", "7").env("SLURM_RESTART_COUNT", "1"));
}

/// Settings that differ from the checkpoint's are refused and listed key by key, whether the run
/// has finished or not. Nothing is written.
#[test]
fn changed_settings_are_refused_key_by_key() {
    let sandbox = Sandbox::new();
    run(&mut train(&sandbox, &[], &[]));
    let state = || {
        let files = files_in(&sandbox.path("w"), "");
        (text(&sandbox, "config.toml"), sandbox.rows("w").len(), files)
    };
    let before = state();
    for steps in ["train.max_steps=4", "train.max_steps=8"] {
        let refused = |sets: &[&str], options: &[&str]| {
            run_failing(&mut train(&sandbox, &[&[steps][..], sets].concat(), options), 2)
        };
        let error = refused(&["assign.formula=paper", "train.lr=0.5"], &[]);
        assert_contains(&error, &["assign.formula: \"released\" -> \"paper\""]);
        assert_contains(&error, &["train.lr: 0.02 -> 0.5", "hint:", "--resume-with-changes"]);
        assert_contains(&error, &["--work-dir", "config.toml"]);
        let error = refused(&["train.images_per_rank=3"], &[]);
        assert_contains(&error, &["train.images_per_rank", "2 -> 3"]);
        assert_contains(&refused(&["train.seed=9"], &[]), &["train.seed: 0 -> 9"]);
        assert_contains(&refused(&[], &["--init", "imagenet"]), &["model.init"]);
    }
    assert_eq!(state(), before);
}

/// `--resume-with-changes` accepts other settings. Those that alter the result are logged as a
/// warning, the others as information.
#[test]
fn changed_settings_are_accepted_with_the_option() {
    let sandbox = Sandbox::new();
    run(&mut train(&sandbox, &[], &[]));
    let first_config = text(&sandbox, "config.toml");
    let changed = ["train.max_steps=8", "train.lr=0.5", "checkpoint.keep=5"];
    let log = stderr(&output(&mut train(&sandbox, &changed, &["--resume-with-changes"])));
    assert_eq!(level_of(&log, "train.lr: 0.02 -> 0.5"), Some("WARN"), "{log}");
    assert_eq!(level_of(&log, "train.max_steps: 4 -> 8"), Some("INFO"), "{log}");
    assert_eq!(text(&sandbox, "config.toml"), first_config, "the first start's file is kept");
    assert_contains(&text(&sandbox, "config-2.toml"), &["lr = 0.5"]);
    let attempts: Vec<u64> =
        sandbox.rows("w").iter().map(|r| r["attempt"].as_u64().unwrap()).collect();
    assert_eq!(attempts, [1, 1, 1, 1, 2, 2, 2, 2]);
    // The changed settings now belong to the run. No step is left to train, so no settings are
    // written.
    run(&mut train(&sandbox, &changed, &[]));
    assert!(!Path::new(&(sandbox.path("w") + "/config-3.toml")).exists());
}

/// Steps count as fewer or more epochs with another global batch, which is said; a run that would
/// thus be at its end is refused.
#[test]
fn steps_are_not_converted_to_another_global_batch() {
    let sandbox = Sandbox::new();
    let (base, batch) = (["train.max_steps=0", "train.epochs=2"], "train.images_per_rank=4");
    run(&mut train(&sandbox, &base, &[]));
    let larger = [&base[..], &[batch]].concat();
    let error = run_failing(&mut train(&sandbox, &larger, &["--resume-with-changes"]), 2);
    assert_contains(&error, &["nothing is left to train", "hint: raise train.epochs"]);
    for (epochs, change) in [("train.epochs=9", batch), ("train.epochs=30", "data.limit=5")] {
        let longer = ["train.max_steps=0", epochs];
        let sets = [&longer[..], &[batch, change]].concat();
        let log = stderr(&output(&mut train(&sandbox, &sets, &["--resume-with-changes"])));
        assert_eq!(level_of(&log, "count as"), Some("WARN"), "{log}");
    }
}

/// Evaluation settings may change, but APs with other ones are not comparable, which is said.
#[test]
fn changed_evaluation_settings_are_said_to_affect_ap() {
    let sandbox = Sandbox::new();
    let evaluating = "eval.every_epochs=1";
    run(&mut train(&sandbox, &[evaluating], &[]));
    let warning = |set| {
        let log = stderr(&output(&mut train(&sandbox, &[evaluating, set], &[])));
        level_of(&log, "the AP of earlier evaluations").map(str::to_owned)
    };
    assert_eq!(warning("eval.nms_iou=0.5").as_deref(), Some("WARN"));
    assert_eq!(warning("eval.every_epochs=2"), None);
}

/// A validation split that was packed again with other boxes does not go unnoticed.
#[test]
fn another_validation_split_is_reported() {
    let sandbox = Sandbox::new();
    let resume = |steps: usize| {
        let steps = format!("train.max_steps={steps}");
        let sets = [&steps, "eval.every_epochs=1"];
        let log = stderr(&output(&mut train(&sandbox, &sets, &[])));
        level_of(&log, "was packed again").map(str::to_owned)
    };
    assert_eq!((resume(2), resume(3)), (None, None));
    let file = sandbox.path("coco/annotations/instances_val2017.json");
    let mut truth: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    truth["annotations"].as_array_mut().unwrap().pop();
    std::fs::write(&file, truth.to_string()).unwrap();
    run(Command::new(bin("dw-pack")).arg(sandbox.path("coco")));
    assert_eq!(resume(4).as_deref(), Some("WARN"));
}

/// A work directory with checkpoints of one run is not used by another, whose restart would resume
/// from them. A link to a disk that is not mounted is not an empty work directory.
#[test]
fn checkpoints_of_another_run_are_not_overwritten() {
    let sandbox = Sandbox::new();
    run(&mut train(&sandbox, &["train.max_steps=2"], &[]));
    sandbox.train(0, "other", &["train.max_steps=4"]);
    let from = sandbox.path("other");
    let error = run_failing(&mut train(&sandbox, &["train.max_steps=8"], &["--resume", &from]), 2);
    assert_contains(&error, &["another run (step 2)", "--resume auto", "--work-dir"]);
    let checkpoints = sandbox.path("w") + "/checkpoints";
    std::fs::rename(&checkpoints, sandbox.path("unmounted")).unwrap();
    std::os::unix::fs::symlink(sandbox.path("missing"), &checkpoints).unwrap();
    let error = run_failing(&mut train(&sandbox, &["train.max_steps=8"], &[]), 3);
    assert_contains(&error, &["cannot list", "checkpoints"]);
    assert_eq!(sandbox.rows("w").len(), 2, "metrics stay");
}

/// TensorBoard files are written on request only, one for each start.
#[test]
fn metrics_are_written_for_tensorboard_on_request() {
    let sandbox = Sandbox::new();
    let folder = sandbox.path("w") + "/tensorboard";
    run(&mut train(&sandbox, &["train.max_steps=2"], &[]));
    assert!(!Path::new(&folder).exists());
    for steps in [5, 6] {
        let steps = format!("train.max_steps={steps}");
        let sets = [&steps, "train.tensorboard=true", "eval.every_epochs=1"];
        run(&mut train(&sandbox, &sets, &[]));
    }
    let count = |file: &Path, tag: &str| {
        let bytes = std::fs::read(file).unwrap();
        bytes.windows(tag.len()).filter(|w| *w == tag.as_bytes()).count()
    };
    let counts: Vec<_> = files_in(&folder, "")
        .iter()
        .map(|file| ["train/grad_norm", "time/step_s", "val/AP50"].map(|tag| count(file, tag)))
        .collect();
    assert_eq!(counts, [[3, 3, 1], [1, 1, 1]]);
}

/// Another data set in the same work directory is refused, with a hint to `--work-dir`.
#[test]
fn another_data_set_in_the_same_work_directory_is_refused() {
    let (sandbox, other) = (Sandbox::new(), Sandbox::with_images(9, 3));
    run(&mut train(&sandbox, &[], &[]));
    let args =
        ["smoke", "--device", "cpu", "--data", &other.shards(), "--work-dir", &sandbox.path("w")];
    let error = run_failing(launch(0, "dw-train").args(args), 2);
    assert_contains(&error, &["fingerprint", " -> ", "hint:", "--work-dir"]);
}

/// The global batch size is kept on another number of ranks, also when the same command is
/// repeated.
#[test]
fn the_global_batch_is_kept_on_another_number_of_ranks() {
    let sandbox = Sandbox::new();
    let sets = |steps| vec!["eval.every_epochs=0", "train.images_per_rank=4", steps];
    sandbox.train(1, "w", &sets("train.max_steps=3"));
    for steps in ["train.max_steps=5", "train.max_steps=7"] {
        run(launch(2, "dw-train").args(sandbox.train_args("w", &sets(steps))));
        let newest = sandbox.checkpoints("w").pop().unwrap();
        let state = std::fs::read_to_string(newest.join("state.json")).unwrap();
        let state: Value = serde_json::from_str(&state).unwrap();
        assert_eq!(state["global_batch"], 4);
    }
    assert_eq!(sandbox.rows("w").len(), 7);
}

/// After a kill the metrics hold each step once, in order, with the number of the start that
/// computed it.
#[test]
fn steps_after_the_checkpoint_are_removed_from_the_metrics() {
    let sandbox = Sandbox::new();
    let sets = ["eval.every_epochs=0", "checkpoint.every_steps=4", "train.max_steps=15"];
    let mut killed = launch(0, "dw-train");
    killed.args(sandbox.train_args("w", &sets)).env("DW_FAULT", "kill@0:11");
    Job::start(&mut killed).wait(Duration::from_mins(1));
    let newest = sandbox.newest_step("w");
    assert!(newest == 4 || newest == 8, "a checkpoint before step 11: {newest}");
    sandbox.train(0, "w", &sets);
    let rows = sandbox.rows("w");
    assert!(rows.iter().map(|r| r["step"].as_u64().unwrap()).eq(1..=15));
    let second = rows.iter().filter(|r| r["attempt"] == 2).count();
    assert_eq!(second, 15 - newest, "the second start resumed from step {newest}");
    sandbox.train(0, "whole", &sets);
    assert_eq!(sandbox.losses("w"), sandbox.losses("whole"));
}

#[test]
fn steps_and_epochs_are_numbered_alike_in_rows_and_checkpoints() {
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

#[test]
fn checkpoint_every_minutes_writes_checkpoints_by_time() {
    let sandbox = Sandbox::new();
    let count = |work: &str, minutes: &str| {
        let sets = [
            "eval.every_epochs=0",
            "train.max_steps=40",
            "train.epochs=100",
            "checkpoint.keep=100",
            "checkpoint.every_steps=1000",
            minutes,
        ];
        sandbox.train(0, work, &sets);
        sandbox.checkpoints(work).len()
    };
    assert!(count("w", "checkpoint.every_minutes=0.001") > 3);
    assert_eq!(count("v", "checkpoint.every_minutes=0"), 1);
}

/// A run that was started with relative paths can be evaluated from another folder, and all files
/// of a checkpoint have the same permissions.
#[test]
fn a_run_can_be_evaluated_from_another_folder() {
    use std::os::unix::fs::PermissionsExt;
    let sandbox = Sandbox::new();
    let mut c = launch(0, "dw-train");
    c.current_dir(sandbox.path(""));
    c.args(["smoke", "--device", "cpu", "--data", "coco/shards", "--work-dir", "w"]);
    run(c.args(["--set", "train.epochs=1"]));
    let mut c = Command::new(bin("dw-eval"));
    run(c.current_dir("/").arg(sandbox.path("w")).args(["--device", "cpu"]));
    let folder = sandbox.checkpoints("w").remove(0);
    let modes: Vec<u32> = files_in(folder.to_str().unwrap(), "")
        .iter()
        .map(|f| f.metadata().unwrap().permissions().mode())
        .collect();
    assert!(modes.iter().all(|m| *m == modes[0]), "{modes:?}");
}

/// `train.precision = "auto"` is resolved before settings are compared or saved, so a run keeps its
/// precision.
#[test]
fn precision_is_part_of_the_run() {
    let sandbox = Sandbox::new();
    for (set, keys) in [
        ("train.precision=tf32", ["train.precision", "tf32", "hint:", "f32"]),
        ("train.precision=fp16", ["fp16", "auto", "tf32", "f64"]),
    ] {
        assert_contains(&run_failing(&mut train(&sandbox, &[set], &[]), 2), &keys);
    }
    run(&mut train(&sandbox, &["train.max_steps=2", "train.precision=f32"], &[]));
    assert_contains(&text(&sandbox, "config.toml"), &["precision = \"f32\""]);
    // `auto` is f32 on a CPU.
    run(&mut train(&sandbox, &["train.precision=auto"], &[]));
    assert_eq!(sandbox.steps("w").len(), 4);
    let error = run_failing(&mut train(&sandbox, &["train.precision=f64"], &[]), 2);
    assert_contains(&error, &["train.precision: \"f32\" -> \"f64\""]);
}

/// On a CPU, a run is deterministic without this setting.
#[test]
fn deterministic_algorithms_change_nothing_on_a_cpu() {
    let sandbox = Sandbox::new();
    let losses = |work: &str, set: &str| {
        sandbox.train(0, work, &[&SHORT[..], &[set]].concat());
        sandbox.losses(work)
    };
    assert_eq!(losses("a", "train.deterministic=false"), losses("b", "train.deterministic=true"));
}
