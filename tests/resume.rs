//! Checkpoints survive kills, full disks and read-only folders. `DW_KILLS` sets the number of
//! kills.

mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use support::{Job, Sandbox, assert_contains, bin, last_error, launch, processes, rounds, stderr};

/// Kills the whole job with SIGKILL at moments spread over a run that writes a checkpoint after
/// every step. Each start resumes from the newest checkpoint, and the losses equal those of an
/// undisturbed run, bit for bit.
#[test]
fn kills_at_any_moment_lose_nothing() {
    let sandbox = Sandbox::new();
    let kills = rounds("DW_KILLS", 5);
    // The killed runs would go on for long; the last one ends soon after them.
    let common = ["eval.every_epochs=0", "checkpoint.every_steps=1"];
    let sets = [&common[..], &["train.max_steps=1000000"]].concat();
    let mut random = 0x2545_f491_4f6c_dd1du64;
    for kill in 0..kills {
        // Xorshift with a fixed seed: the same moments in every run of the test.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let (newest, attempt) = (sandbox.newest_step("w") as u64, sandbox.last_attempt("w"));
        let job = Job::start(launch(2, "dw-train").args(sandbox.train_args("w", &sets)));
        if kill % 5 > 0 {
            job.wait_until("a step of this start", || sandbox.last_attempt("w") > attempt);
        }
        std::thread::sleep(Duration::from_millis(random % 700));
        let _ = Command::new("pkill").args(["-KILL", "-f", &sandbox.path("w")]).status();
        let (code, log) = job.wait(Duration::from_secs(20));
        assert!(code != Some(0) && !log.contains("error: "), "kill {kill}: {log}");
        let began = Instant::now();
        while !processes(&sandbox.path("w")).is_empty() {
            assert!(began.elapsed() < Duration::from_secs(20), "a rank survives SIGKILL");
            std::thread::sleep(Duration::from_millis(20));
        }
        // The newest checkpoint was valid: this start did not fall back to an older one.
        let rows = sandbox.rows_so_far("w");
        let first = rows.iter().find(|r| r["attempt"].as_u64().unwrap() > attempt);
        assert!(first.is_none_or(|r| r["step"] == newest + 1), "kill {kill}: {first:?}: {log}");
    }
    let last = format!("train.max_steps={}", sandbox.newest_step("w") + 5);
    let sets = [&common[..], &[&last]].concat();
    sandbox.train(2, "whole", &sets);
    sandbox.train(2, "w", &sets);
    assert_eq!(sandbox.losses("w"), sandbox.losses("whole"));
}

/// An evaluation that was due, but was prevented by a kill or a signal, is run once by the next
/// start, with the same result.
#[test]
fn a_missed_evaluation_is_run_by_the_next_start() {
    let sandbox = Sandbox::with_images(14, 300);
    let sets = ["train.epochs=1"];
    sandbox.train(2, "whole", &sets);
    let ap = |work: &str| {
        sandbox.rows(work).into_iter().find(|r| r.contains_key("AP")).map(|r| r["AP"].clone())
    };
    assert!(ap("whole").is_some());
    // As after a kill during the evaluation at the end of the run.
    let metrics = sandbox.path("whole") + "/metrics.jsonl";
    let text = std::fs::read_to_string(&metrics).unwrap();
    let left: Vec<&str> = text.split_inclusive('\n').filter(|l| !l.contains("\"AP\"")).collect();
    std::fs::write(&metrics, left.concat()).unwrap();
    sandbox.train(2, "whole", &sets);
    let repeated = ap("whole");
    assert!(repeated.is_some());
    let job = Job::start(launch(2, "dw-train").args(sandbox.train_args("w", &sets)));
    job.wait_until("a checkpoint", || sandbox.newest_step("w") > 0);
    job.signal("USR1");
    let (code, log) = job.wait(Duration::from_mins(1));
    assert_eq!((code, ap("w")), (Some(75), None), "{log}");
    sandbox.train(2, "w", &sets);
    assert_eq!(ap("w"), repeated);
    sandbox.train(2, "w", &sets);
    let evaluations = sandbox.rows("w").iter().filter(|r| r.contains_key("AP")).count();
    assert_eq!(evaluations, 1);
}

/// Runs a shell line in its own mount namespace; `None` if the system does not allow this.
fn run_with_own_mounts(line: &str) -> Option<std::process::Output> {
    let options = ["-rm", "-m"]
        .into_iter()
        .find(|o| Command::new("unshare").args([o, "true"]).status().is_ok_and(|s| s.success()))?;
    Some(Command::new("unshare").args([options, "sh", "-c", line]).output().unwrap())
}

/// A shell line that mounts a file system at the checkpoint folder, trains, lists the folder and
/// exits with the code of the training.
fn train_on_mount(sandbox: &Sandbox, work: &str, mount: &str, sets: &[&str]) -> String {
    let args: Vec<String> =
        sandbox.train_args(work, sets).iter().map(|a| format!("'{a}'")).collect();
    let (train, args) = (bin("dw-train"), args.join(" "));
    let checkpoints = format!("'{}/checkpoints'", sandbox.path(work));
    format!(
        "mkdir -p {checkpoints} && {mount} {checkpoints} || exit 99; \
         '{}' {args}; code=$?; ls -A {checkpoints}; exit $code",
        train.display()
    )
}

/// A checkpoint of the smoke network takes 6.7 MB: one fits on the small disk, two do not.
#[test]
fn checkpoint_on_error_applies_to_full_and_read_only_disks() {
    let sandbox = Sandbox::new();
    let run = |work: &str, mount: &str, on_error: &str| {
        let on_error = format!("checkpoint.on_error={on_error}");
        let sets =
            ["eval.every_epochs=0", "checkpoint.every_steps=4", "train.max_steps=12", &on_error];
        let out = run_with_own_mounts(&train_on_mount(&sandbox, work, mount, &sets))?;
        let log = stderr(&out);
        assert_eq!(out.status.code(), Some(3), "{log}");
        Some((log, String::from_utf8(out.stdout).unwrap()))
    };
    let small = "mount -t tmpfs -o size=10m none";
    let Some((log, left)) = run("stop", small, "stop") else {
        println!("skipped: no mount namespaces on this system");
        return;
    };
    let full = "No space left on device";
    assert_contains(last_error(&log), &["step 8", full, "hint:", "checkpoint.on_error"]);
    assert_eq!(left.trim(), "step-00000004", "the older one is left and nothing incomplete");
    assert!(sandbox.steps("stop").len() < 12);
    let (log, left) = run("continue", small, "continue").unwrap();
    assert_contains(&log, &["step 8", full, "checkpoint.on_error"]);
    assert_contains(last_error(&log), &["step 12", full, "hint:"]);
    assert_eq!(left.trim(), "step-00000004");
    assert_eq!(sandbox.steps("continue").len(), 12);
    let (log, left) = run("readonly", "mount -t tmpfs -o ro none", "stop").unwrap();
    assert_contains(last_error(&log), &["step 4", "Read-only file system", "hint:"]);
    assert_eq!(left.trim(), "");
}
