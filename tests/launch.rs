//! `dw-launch` with real jobs: restarts, signals, output, errors before the job starts.

mod support;

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::{
    Job, Sandbox, assert_contains, bin, dw_launch, launch, output, processes, run, run_failing,
};

fn settings<'a>(more: &[&'a str]) -> Vec<&'a str> {
    ["eval.every_epochs=0"].iter().chain(more).copied().collect()
}

/// The weights of the newest checkpoint.
fn weights(sandbox: &Sandbox, work: &str) -> Vec<u8> {
    let newest = sandbox.checkpoints(work).pop().unwrap();
    std::fs::read(newest.join("model.safetensors")).unwrap()
}

/// Ranks are killed twice; the job restarts and finishes with the weights of an undisturbed run.
#[test]
fn a_job_restarts_after_a_lost_rank_with_the_same_result() {
    let sandbox = Sandbox::new();
    let steps = ["train.max_steps=60", "checkpoint.every_steps=4"];
    sandbox.train(2, "whole", &settings(&steps));
    let mut command = dw_launch(2, &["--max-restarts", "3", "--restart-delay", "0.1"], "dw-train");
    let job = Job::start(command.args(sandbox.train_args("w", &settings(&steps))));
    // Kills the newest process of that name (rank 1), then the oldest (rank 0).
    for (round, selection) in ["-n", "-o"].into_iter().enumerate() {
        job.wait_until("checkpoints", || sandbox.newest_step("w") >= 16 * (round + 1));
        let pattern = format!("^{}.*{}", bin("dw-train").display(), sandbox.path("w"));
        run(Command::new("pkill").args(["-KILL", selection, "-f", &pattern]));
        let restarts = round as u64 + 1;
        job.wait_until("a restart", || sandbox.last_attempt("w") > restarts);
    }
    let (code, log) = job.wait(Duration::from_mins(2));
    assert_eq!(code, Some(0), "{log}");
    assert_contains(&log, &["signal 9", "1 of 3", "2 of 3"]);
    let attempts: Vec<u64> =
        sandbox.rows("w").iter().map(|r| r["attempt"].as_u64().unwrap()).collect();
    // Rows of the first start are kept, because the later starts resumed from its checkpoints.
    assert_eq!((attempts.first(), attempts.last()), (Some(&1), Some(&3)), "{log}");
    assert_eq!(sandbox.losses("w"), sandbox.losses("whole"));
    assert!(weights(&sandbox, "w") == weights(&sandbox, "whole"), "the weights differ");
}

#[test]
fn restarts_are_limited_and_usage_errors_are_not_retried() {
    let sandbox = Sandbox::new();
    let mut command = dw_launch(2, &["--max-restarts", "1", "--restart-delay", "0"], "dw-train");
    command
        .args(sandbox.train_args("w", &settings(&["train.max_steps=9"])))
        .env("DW_FAULT", "kill@1:6!");
    let (code, log) = Job::start(&mut command).wait(Duration::from_mins(1));
    assert_eq!(code, Some(4), "{log}");
    assert_contains(&log, &["1 of 1", "--max-restarts"]);
    assert_eq!(sandbox.last_attempt("w"), 2, "{log}");
    let mut command = dw_launch(2, &["--max-restarts", "3"], "dw-train");
    let log = run_failing(command.args(["smoke", "--set", "train.epoch=3"]), 2);
    assert_eq!(log.matches("`train.epochs`").count(), 1, "{log}");
}

/// A restarted job starts from the checkpoint given on the command line until it has one of its
/// own.
#[test]
fn a_restart_keeps_the_starting_point_until_there_is_a_checkpoint() {
    let sandbox = Sandbox::new();
    sandbox.train(2, "whole", &settings(&["train.max_steps=12"]));
    sandbox.train(2, "first", &settings(&["train.max_steps=4"]));
    let from = sandbox.path("first") + "/checkpoints/step-00000004";
    for (fault, every) in
        [("kill@1:6", "checkpoint.every_steps=100"), ("kill@1:11", "checkpoint.every_steps=3")]
    {
        let work = fault.replace(['@', ':'], "-");
        let options = ["--max-restarts", "1", "--restart-delay", "0"];
        let mut command = dw_launch(2, &options, "dw-train");
        command
            .args(sandbox.train_args(&work, &settings(&["train.max_steps=12", every])))
            .args(["--resume", &from])
            .env("DW_FAULT", fault);
        let (code, log) = Job::start(&mut command).wait(Duration::from_mins(1));
        assert_eq!((code, sandbox.last_attempt(&work)), (Some(0), 2), "{log}");
        assert_eq!(sandbox.losses(&work), sandbox.losses("whole")[4..], "{log}");
        let again = format!("resuming from {from}");
        let resumed = if every.ends_with("100") { 2 } else { 1 };
        assert_eq!(log.matches(&again).count(), resumed, "{log}");
    }
}

/// Ctrl-C on a single process, or its terminal closing, writes a checkpoint, from which the same
/// command resumes.
#[test]
fn ctrl_c_and_a_hangup_save_a_checkpoint() {
    let sandbox = Sandbox::new();
    let long = settings(&["train.max_steps=100000", "checkpoint.every_steps=100000"]);
    for signal in ["INT", "HUP"] {
        let job = Job::start(launch(0, "dw-train").args(sandbox.train_args(signal, &long)));
        job.wait_until("the first step", || !sandbox.rows_so_far(signal).is_empty());
        job.signal(signal);
        let (code, log) = job.wait(Duration::from_secs(30));
        assert_eq!(code, Some(75), "{log}");
        assert_eq!(sandbox.newest_step(signal), sandbox.steps(signal).len(), "{log}");
    }
}

/// A full disk under the log, or a reader of it that ends, does not end the run.
#[test]
fn a_run_goes_on_without_its_log() {
    let sandbox = Sandbox::new();
    let sets = settings(&["train.max_steps=3"]);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = launch(0, "dw-train");
    command.args(sandbox.train_args("full", &sets)).stderr(full);
    assert_eq!(command.status().unwrap().code(), Some(0));
    let mut command = launch(0, "dw-train");
    let mut child =
        command.args(sandbox.train_args("gone", &sets)).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!((sandbox.newest_step("full"), sandbox.newest_step("gone")), (3, 3));
}

/// A signal to dw-launch or mpirun makes all ranks save one checkpoint and exit with code 75; the
/// same command then resumes.
#[test]
fn signals_save_a_checkpoint_and_exit_with_75() {
    let sandbox = Sandbox::new();
    let long = settings(&["train.max_steps=4000", "checkpoint.every_steps=100000"]);
    for (signal, supervised) in [("USR1", false), ("USR1", true), ("TERM", true), ("INT", true)] {
        let work = format!("{signal}{supervised}");
        let mut command =
            if supervised { dw_launch(2, &[], "dw-train") } else { launch(2, "dw-train") };
        let job = Job::start(command.args(sandbox.train_args(&work, &long)));
        job.wait_until("the first step", || !sandbox.rows_so_far(&work).is_empty());
        job.signal(signal);
        let (code, log) = job.wait(Duration::from_secs(30));
        assert_eq!(code, Some(75), "{signal}, under dw-launch: {supervised}: {log}");
        assert_eq!(sandbox.checkpoints(&work).len(), 1, "{log}");
        let steps = sandbox.steps(&work).len();
        assert_eq!(sandbox.newest_step(&work), steps, "{log}");
        assert_contains(&log, &["signal", &format!("step {steps}")]);
        let more = format!("train.max_steps={}", steps + 2);
        sandbox.train(2, &work, &settings(&[&more]));
        assert_eq!(sandbox.steps(&work).len(), steps + 2);
    }
}

#[test]
fn output_lines_are_prefixed_with_the_rank_unless_stdout_is_raw() {
    let sandbox = Sandbox::new();
    sandbox.train(1, "w", &["train.epochs=1"]);
    let eval = |options: &[&str]| {
        let mut command = dw_launch(2, options, "dw-eval");
        let out = output(command.args([&sandbox.path("w"), "--device", "cpu", "--json"]));
        (String::from_utf8(out.stdout.clone()).unwrap(), support::stderr(&out))
    };
    let (stdout, log) = eval(&[]);
    assert!(stdout.starts_with("[0] {"), "{stdout}");
    assert!(log.lines().any(|l| l.starts_with("[0] ")), "{log}");
    let raw: Value = serde_json::from_str(&eval(&["--raw-stdout"]).0).unwrap();
    assert!(raw["AP"].is_number());
}

/// Idle OpenMP threads sleep unless the environment already sets a wait policy.
#[test]
fn openmp_waits_passively_unless_the_environment_sets_it() {
    let sandbox = Sandbox::new();
    for (chosen, expected) in [(None, "OMP_WAIT_POLICY=passive"), (Some("77"), "GOMP_SPINCOUNT=77")]
    {
        let mut command = launch(0, "dw-train");
        command.args(sandbox.train_args("w", &settings(&["train.max_steps=100000"])));
        command.env_remove("OMP_WAIT_POLICY").env_remove("GOMP_SPINCOUNT");
        command.envs(chosen.map(|n| ("GOMP_SPINCOUNT", n)));
        let before = sandbox.last_attempt("w");
        let job = Job::start(&mut command);
        job.wait_until("the first step", || sandbox.last_attempt("w") > before);
        let environment = job.environment();
        job.signal("KILL");
        job.wait(Duration::from_secs(20));
        assert_contains(&environment, &[expected]);
        assert_eq!(environment.contains("OMP_WAIT_POLICY"), chosen.is_none(), "{environment}");
    }
}

#[test]
fn usage_errors_are_reported_before_anything_starts() {
    let fail = |args: &[&str]| run_failing(Command::new(bin("dw-launch")).args(args), 2);
    assert_contains(&fail(&["-n", "0", "--", "dw-train"]), &["-n 0"]);
    assert_contains(&fail(&["--nodes", "2", "--", "dw-train"]), &["--hosts", "--slurm"]);
    assert_contains(&fail(&["-n", "1", "--", "no-such-program"]), &["no-such-program", "hint:"]);
    assert_contains(&fail(&["--slurm", "--", "dw-train"]), &["--slurm", "ranks", "hint:", "-n "]);
    assert_contains(&fail(&["plan", "--gpus", "8", "--step-ms", "0"]), &["--step-ms"]);
    let shown =
        run(Command::new(bin("dw-launch")).args(["-n", "3", "--dry-run", "--", "dw-train", "a b"]));
    assert_contains(&shown, &["mpirun -n 3", "-x DW_BOARD", "dw-train 'a b'"]);
}

#[test]
fn plan_covers_a_range_of_gpus() {
    let plan = |args: &[&str]| {
        run(Command::new(bin("dw-launch"))
            .args(["plan", "--gpus", "8..4096", "--step-ms", "180"])
            .args(args))
    };
    let json = plan(&["--json"]);
    let rows = json.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    assert_eq!(rows.filter(|r| r["step_ms"].is_number()).count(), 10);
    assert_contains(&plan(&[]), &["4096", "exposed"]);
}

/// mpirun adds a prefix to each chunk that it reads, and a line of JSON can be longer than a chunk.
#[test]
fn raw_output_is_passed_on_unchanged() {
    let script = "head -c 100000 /dev/zero | tr '\\0' x; printf '\\377\\n'";
    let mut command = dw_launch(1, &["--raw-stdout"], "sh");
    let out = output(command.args(["-c", script]));
    assert_eq!(out.stdout, [&b"x".repeat(100_000)[..], b"\xff\n"].concat());
}

/// As with `nohup dw-launch ... &`, closing the terminal does not end the job.
#[test]
fn a_hangup_that_is_ignored_does_not_stop_a_job() {
    let launch = bin("dw-launch").to_str().unwrap().to_owned();
    let sandbox = Sandbox::new();
    let started = sandbox.path("started");
    let script = format!("trap '' HUP; exec '{launch}' -n 1 -- sh -c 'touch {started}; sleep 2'");
    let mut child =
        Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    while !std::path::Path::new(&started).exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    // SAFETY: a signal to a child that has not been waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGHUP) };
    assert!(child.wait().unwrap().success());
}

/// A full disk is reported as an output error, not as a bug of the program.
#[test]
fn results_that_cannot_be_printed_are_an_error() {
    for program in ["dw-launch", "dw-weights"] {
        let mut command = Command::new(bin(program));
        match program {
            "dw-launch" => command.args(["plan", "--gpus", "8", "--step-ms", "180"]),
            _ => command.args(["list", "weights/tests/data/zip.pth"]),
        };
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let out = command.stdout(full).output().unwrap();
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(3), "{program}: {text}");
        assert_contains(&text, &["cannot write", "standard output"]);
    }
}

/// A program that ignores every request is ended after `--grace`, or by a second signal, with all
/// its processes.
#[test]
fn a_job_that_ignores_signals_is_ended() {
    let sandbox = Sandbox::new();
    let started = sandbox.path("started");
    let child = format!("sh -c 'sleep 300; :' {started}");
    let script = format!("trap '' USR1 TERM INT; touch {started}; {child} & {child}; :");
    for (grace, signals) in [("1", 1), ("60", 2)] {
        let mut command = dw_launch(1, &["--grace", grace, "--tear-down", "1"], "sh");
        let job = Job::start(command.args(["-c", &script]));
        job.wait_until("the start", || std::path::Path::new(&started).exists());
        for _ in 0..signals {
            std::thread::sleep(Duration::from_millis(500));
            job.signal("TERM");
        }
        let (code, log) = job.wait(Duration::from_secs(20));
        assert!(code != Some(0), "{grace}: {log}");
        // SIGKILL was sent; it takes effect at once, but not synchronously.
        std::thread::sleep(Duration::from_millis(500));
        assert!(processes(&started).is_empty(), "{grace}: {log}");
        std::fs::remove_file(&started).unwrap();
    }
}

#[test]
fn programs_that_cannot_be_started_are_not_retried() {
    let sandbox = Sandbox::new();
    let script = sandbox.path("script.sh");
    std::fs::write(&script, "#!/bin/sh\n").unwrap();
    let mut command = dw_launch(1, &["--max-restarts", "1"], &script);
    assert_contains(&run_failing(&mut command, 2), &[&script, "not executable", "hint:"]);
}

/// The output of `measure` is what `plan --measured` reads. Its times are replaced: on a busy
/// machine they do not fit any latency and bandwidth.
#[test]
fn measurements_can_be_planned_with() {
    let sandbox = Sandbox::new();
    let file = sandbox.path("measured.jsonl");
    let mut text = String::new();
    for ranks in [2, 3] {
        let mut command = dw_launch(ranks, &["--raw-stdout"], bin("dw-launch").to_str().unwrap());
        let rows = run(command.arg("measure"));
        let bytes: Vec<(u64, u64)> = rows
            .lines()
            .map(|l| serde_json::from_str::<Value>(l).unwrap())
            .map(|row| (row["ranks"].as_u64().unwrap(), row["bytes"].as_u64().unwrap()))
            .collect();
        assert!(bytes.len() > 2 && bytes.iter().all(|b| b.0 == ranks as u64), "{rows}");
        assert!(bytes.windows(2).all(|b| b[0].1 < b[1].1), "{rows}");
        for line in rows.lines() {
            let mut row: Value = serde_json::from_str(line).unwrap();
            assert!(row["seconds"].as_f64().unwrap() > 0.0, "{rows}");
            row["seconds"] = (1e-5 + row["bytes"].as_f64().unwrap() / 1e9).into();
            text += &row.to_string();
            text.push('\n');
        }
    }
    std::fs::write(&file, text).unwrap();
    let mut plan = Command::new(bin("dw-launch"));
    plan.args(["plan", "--measured", &file, "--gpus", "2,3", "--gpus-per-node", "4"]);
    let table = run(plan.args(["--step-ms", "500", "--gradient-mib", "122"]));
    assert_contains(&table, &["2", "3", "%"]);
}
