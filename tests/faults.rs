//! Faults of one rank, injected with `DW_FAULT`: the whole job exits within seconds and names the
//! rank and the cause, and a restart continues from the last checkpoint. `DW_FAULT_ROUNDS` sets the
//! number of repetitions.

mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use support::{
    Job, Sandbox, assert_contains, dw_launch, files_in, launch, process_of_rank, processes, rounds,
    run,
};

/// Maximum time from the fault to the exit of the last process.
const EXIT_LIMIT: Duration = Duration::from_secs(10);
/// `train.step_deadline_s` of these tests.
const DEADLINE: Duration = Duration::from_secs(3);

struct Fault {
    kind: &'static str,
    /// Exit code under mpirun.
    mpirun_code: i32,
    /// Exit code under dw-launch.
    dw_launch_code: i32,
    /// The rank that the report of dw-launch names first; `None` where all ranks fail together.
    reported_rank: Option<usize>,
    /// Texts that the log under dw-launch must contain.
    keys: &'static [&'static str],
}

const FAULTS: [Fault; 6] = [
    Fault {
        kind: "kill",
        mpirun_code: 137,
        dw_launch_code: 4,
        reported_rank: Some(1),
        keys: &["signal 9", "rank 0", "collective"],
    },
    Fault {
        kind: "exit",
        mpirun_code: 7,
        dw_launch_code: 7,
        reported_rank: Some(1),
        keys: &["rank 0", "collective"],
    },
    Fault {
        kind: "panic",
        mpirun_code: 70,
        dw_launch_code: 70,
        reported_rank: Some(1),
        keys: &["code 70", "panicked"],
    },
    // Rank 0 reports the timeout and names the rank that it waited for.
    Fault {
        kind: "stop",
        mpirun_code: 4,
        dw_launch_code: 4,
        reported_rank: Some(0),
        keys: &["rank 1", "collective"],
    },
    Fault {
        kind: "oom",
        mpirun_code: 5,
        dw_launch_code: 5,
        reported_rank: Some(1),
        // libtorch's message.
        keys: &["code 5", "can't allocate memory"],
    },
    Fault {
        kind: "nan",
        mpirun_code: 3,
        dw_launch_code: 3,
        reported_rank: None,
        keys: &["code 3", "step 5", "NaN"],
    },
];

fn settings<'a>(more: &[&'a str]) -> Vec<&'a str> {
    ["eval.every_epochs=0", "checkpoint.every_steps=1", "train.step_deadline_s=3"]
        .iter()
        .chain(more)
        .copied()
        .collect()
}

/// The rank that the report of dw-launch names first.
fn reported_rank(log: &str) -> Option<usize> {
    let mut report = log.lines().filter_map(|l| l.strip_prefix("dw-launch: "));
    report.find_map(|l| l.split("rank ").nth(1)?.split(' ').next()?.parse().ok())
}

/// Injects a fault on rank 1 in step 5, then restarts the job and trains to step 8. Returns exit
/// code and log of the job that failed.
fn fail_and_resume(
    sandbox: &Sandbox,
    work: &str,
    fault: &str,
    supervised: bool,
) -> (Option<i32>, String) {
    let args = sandbox.train_args(work, &settings(&["train.max_steps=8"]));
    let mut command =
        if supervised { dw_launch(2, &[], "dw-train") } else { launch(2, "dw-train") };
    let job = Job::start(command.args(args).env("DW_FAULT", format!("{fault}@1:5")));
    job.wait_until("the row of step 4", || sandbox.rows_so_far(work).len() >= 4);
    let failed = Instant::now();
    let (code, log) = job.wait(EXIT_LIMIT + DEADLINE);
    while !processes(&sandbox.path(work)).is_empty() {
        let elapsed = failed.elapsed();
        assert!(elapsed < EXIT_LIMIT + DEADLINE, "{fault}: processes outlive the job: {log}");
        std::thread::sleep(Duration::from_millis(50));
    }
    sandbox.train(2, work, &settings(&["train.max_steps=8"]));
    (code, log)
}

#[test]
fn a_failing_rank_ends_the_job_and_loses_nothing() {
    let sandbox = Sandbox::new();
    sandbox.train(2, "whole", &settings(&["train.max_steps=8"]));
    for round in 0..rounds("DW_FAULT_ROUNDS", 1) {
        for fault in &FAULTS {
            for supervised in [false, true] {
                let kind = fault.kind;
                let case = format!("{kind}, under dw-launch: {supervised}");
                let work = format!("{kind}-{round}-{supervised}");
                let (code, log) = fail_and_resume(&sandbox, &work, kind, supervised);
                let expected = if supervised { fault.dw_launch_code } else { fault.mpirun_code };
                assert_eq!(code, Some(expected), "{case}: {log}");
                if supervised {
                    assert_contains(&log, fault.keys);
                    let rank = reported_rank(&log);
                    assert!(rank.is_some(), "{case}: {log}");
                    assert!(fault.reported_rank.is_none_or(|r| rank == Some(r)), "{case}: {log}");
                }
                if supervised && kind == "stop" {
                    // The rank that timed out lists its last collectives by number.
                    assert!(log.matches('#').count() > 4, "{case}: {log}");
                }
                assert_eq!(sandbox.losses(&work), sandbox.losses("whole"), "{case}");
            }
        }
    }
}

/// A shard that is truncated while it is mapped raises SIGBUS: the error names the file.
#[test]
fn a_truncated_shard_file_is_named() {
    let sandbox = Sandbox::new();
    let args = sandbox.train_args("w", &settings(&["train.max_steps=100000"]));
    let job = Job::start(dw_launch(2, &[], "dw-train").args(args));
    job.wait_until("a checkpoint", || sandbox.newest_step("w") > 0);
    let shard = files_in(&sandbox.shards(), ".dwshard")
        .into_iter()
        .find(|f| f.to_string_lossy().contains("train2017"))
        .unwrap();
    std::fs::OpenOptions::new().write(true).open(&shard).unwrap().set_len(0).unwrap();
    let (code, log) = job.wait(EXIT_LIMIT);
    assert_eq!(code, Some(3), "{log}");
    assert_contains(&log, &["error: ", shard.to_str().unwrap(), "hint:", "dw-pack verify"]);
    assert!(processes(&sandbox.path("w")).is_empty());
}

/// Sends a signal to a rank of the jobs in `sandbox`, once it runs.
fn signal_rank(job: &Job, sandbox: &Sandbox, work: &str, rank: usize, signal: &str) {
    let pid = std::cell::RefCell::new(None);
    job.wait_until("the rank's process", || {
        *pid.borrow_mut() = process_of_rank(&sandbox.path(work), rank);
        pid.borrow().is_some()
    });
    run(Command::new("kill").args([&format!("-{signal}"), &pid.take().unwrap()]));
}

/// Images of the validation split in the network input, large enough that an evaluation takes long.
const LARGE: [&str; 2] = ["data.short_side=384", "data.long_side=512"];

/// Outside of training steps the deadline is `train.start_deadline_s`.
#[test]
fn a_rank_that_hangs_in_an_evaluation_ends_the_job() {
    let sandbox = Sandbox::with_images(4, 400);
    let deadline = Duration::from_secs(10);
    let sets = [&LARGE[..], &["train.epochs=1", "train.threads=1"]].concat();
    let deadlines = ["train.start_deadline_s=10", "train.step_deadline_s=100"];
    let args = sandbox.train_args("w", &[&sets[..], &deadlines].concat());
    let job = Job::start(dw_launch(2, &[], "dw-train").args(args));
    job.wait_until("the checkpoint before the evaluation", || sandbox.newest_step("w") > 0);
    signal_rank(&job, &sandbox, "w", 1, "STOP");
    // Rank 0 first finishes its own part.
    let (code, log) = job.wait(deadline + EXIT_LIMIT + Duration::from_secs(20));
    assert_eq!(code, Some(4), "{log}");
    assert_contains(&log, &["rank 1"]);
    assert!(processes(&sandbox.path("w")).is_empty());
    // The evaluation is made up for.
    sandbox.train(2, "w", &sets);
    assert!(sandbox.rows("w").iter().any(|r| r.contains_key("AP")));
}

#[test]
fn a_killed_rank_ends_an_evaluation_by_dw_eval() {
    let sandbox = Sandbox::with_images(4, 400);
    let sets = [&LARGE[..], &["train.max_steps=1", "train.threads=1", "eval.every_epochs=0"]];
    sandbox.train(0, "w", &sets.concat());
    let job = Job::start(launch(2, "dw-eval").args([&sandbox.path("w"), "--device", "cpu"]));
    signal_rank(&job, &sandbox, "w", 1, "KILL");
    let (code, log) = job.wait(EXIT_LIMIT);
    assert!(code == Some(137) || code == Some(4), "{code:?}: {log}");
    assert!(processes(&sandbox.path("w")).is_empty());
}
