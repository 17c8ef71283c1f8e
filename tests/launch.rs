//! `dw-launch` with real jobs: restarts, signals, output, mistakes.

mod support;

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::{Job, Place, bin, dw_launch, fails, files, launch, run, says, stderr};

fn sets<'a>(more: &[&'a str]) -> Vec<&'a str> {
    ["eval.every_epochs=0"].iter().chain(more).copied().collect()
}

fn weights(place: &Place, work: &str) -> Vec<u8> {
    let newest = files(&(place.path(work) + "/checkpoints"), "").pop().unwrap();
    std::fs::read(newest.join("model.safetensors")).unwrap()
}

/// Pain 2: two ranks are lost, and the job ends with the weights of an undisturbed run.
#[test]
fn a_lost_rank_costs_time_and_nothing_else() {
    let place = Place::new();
    let steps = ["train.max_steps=60", "checkpoint.every_steps=4"];
    place.train(2, "whole", &sets(&steps));
    let mut command = dw_launch(2, &["--max-restarts", "3", "--restart-delay", "0.1"], "dw-train");
    let job = Job::start(command.args(place.train_args("w", &sets(&steps))));
    for (round, lost) in ["-n", "-o"].into_iter().enumerate() {
        job.until_true("checkpoints", || place.newest_step("w") >= 16 * (round + 1));
        // The newest and the oldest process of that name: rank 1, rank 0.
        run(Command::new("pkill").args([
            "-KILL",
            lost,
            "-f",
            &format!("^{}.*{}", bin("dw-train").display(), place.path("w")),
        ]));
        job.until_true("a restart", || {
            job.text().matches("starting again from the newest checkpoint").count() > round
        });
    }
    let (code, text) = job.end(Duration::from_mins(2));
    assert_eq!(code, Some(0), "{text}");
    says(
        &text,
        &[
            "was lost: signal 9",
            "starting again from the newest checkpoint (2 of 3)",
            "going on from ",
        ],
    );
    assert_eq!(place.losses("w"), place.losses("whole"));
    assert!(weights(&place, "w") == weights(&place, "whole"), "the weights differ");
}

#[test]
fn restarts_end_somewhere() {
    let place = Place::new();
    let mut command = dw_launch(2, &["--max-restarts", "1", "--restart-delay", "0"], "dw-train");
    command.args(place.train_args("w", &sets(&["train.max_steps=9"]))).env("DW_FAULT", "kill@1:6!");
    let (code, text) = Job::start(&mut command).end(Duration::from_mins(1));
    assert_eq!(code, Some(4), "{text}");
    says(&text, &["(1 of 1)", "started again 1 times, as allowed by --max-restarts: giving up"]);
    // A mistake is no reason to start again.
    let mut command = dw_launch(2, &["--max-restarts", "3"], "dw-train");
    let text = fails(command.args(["smoke", "--set", "train.epoch=3"]), 2);
    assert!(!text.contains("starting again"), "{text}");
}

/// Pain 14: a signal to dw-launch or to mpirun saves on all ranks together and ends with code 75; running again goes on.
#[test]
fn signals_save_and_end_with_75() {
    let place = Place::new();
    let many = sets(&["train.max_steps=4000", "checkpoint.every_steps=100000"]);
    for (signal, supervised) in [("USR1", false), ("USR1", true), ("TERM", true), ("INT", true)] {
        let work = format!("{signal}{supervised}");
        let mut command =
            if supervised { dw_launch(2, &[], "dw-train") } else { launch(2, "dw-train") };
        let job = Job::start(command.args(place.train_args(&work, &many)));
        job.until(" INFO step 1/");
        job.signal(signal);
        let (code, text) = job.end(Duration::from_secs(30));
        assert_eq!(code, Some(75), "{signal}, under dw-launch: {supervised}: {text}");
        says(&text, &["stopped by a signal; checkpoint of step "]);
        let done = files(&(place.path(&work) + "/checkpoints"), "");
        assert_eq!(done.len(), 1, "{done:?}");
        let steps = place.steps(&work).len();
        let more = format!("train.max_steps={}", steps + 2);
        place.train(2, &work, &sets(&[&more]));
        assert_eq!(place.steps(&work).len(), steps + 2);
    }
}

#[test]
fn output_has_its_rank_in_front_and_results_can_go_raw() {
    let place = Place::new();
    place.train(1, "w", &["train.epochs=1"]);
    let eval = |options: &[&str]| {
        let out = dw_launch(2, options, "dw-eval")
            .args([&place.path("w"), "--device", "cpu", "--json"])
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", stderr(&out));
        (String::from_utf8(out.stdout.clone()).unwrap(), stderr(&out))
    };
    let (stdout, log) = eval(&[]);
    assert!(
        stdout.starts_with("[0] {") && log.lines().any(|l| l.starts_with("[0] ")),
        "{stdout}{log}"
    );
    let raw: Value = serde_json::from_str(&eval(&["--raw-stdout"]).0).unwrap();
    assert!(raw["AP"].is_number());
}

/// Idle OpenMP threads sleep, unless the user has chosen how they wait.
#[test]
fn openmp_waits_passively_unless_told_otherwise() {
    let place = Place::new();
    for (chosen, expected) in [(None, "OMP_WAIT_POLICY=passive"), (Some("77"), "GOMP_SPINCOUNT=77")]
    {
        let mut command = launch(0, "dw-train");
        command.args(place.train_args("w", &sets(&["train.max_steps=100000"])));
        command.env_remove("OMP_WAIT_POLICY").env_remove("GOMP_SPINCOUNT");
        command.envs(chosen.map(|n| ("GOMP_SPINCOUNT", n)));
        let job = Job::start(&mut command);
        job.until(" INFO step ");
        let variables = job.variables();
        job.signal("KILL");
        job.end(Duration::from_secs(20));
        says(&variables, &[expected]);
        assert_eq!(variables.contains("OMP_WAIT_POLICY"), chosen.is_none(), "{variables}");
    }
}

#[test]
fn mistakes_are_told_before_anything_starts() {
    let start = |args: &[&str]| fails(Command::new(bin("dw-launch")).args(args), 2);
    says(&start(&["-n", "0", "--", "dw-train"]), &["-n 0", "at least one"]);
    says(&start(&["--nodes", "2", "--", "dw-train"]), &["--hosts", "--slurm"]);
    says(&start(&["-n", "1", "--", "no-such-program"]), &["no-such-program", "hint:"]);
    says(&start(&["--slurm", "--", "dw-train"]), &["how many ranks"]);
    says(&start(&["plan", "--gpus", "8", "--step-ms", "0"]), &["--step-ms"]);
    let shown =
        run(Command::new(bin("dw-launch")).args(["-n", "3", "--dry-run", "--", "dw-train", "a b"]));
    says(&shown, &["mpirun -n 3", "-x DW_BOARD", "dw-train 'a b'"]);
}

#[test]
fn plans_for_any_number_of_gpus() {
    let plan = |args: &[&str]| {
        run(Command::new(bin("dw-launch"))
            .args(["plan", "--gpus", "8..4096", "--step-ms", "180"])
            .args(args))
    };
    assert_eq!(
        plan(&["--json"])
            .lines()
            .filter(|l| serde_json::from_str::<Value>(l).unwrap()["step_ms"].is_number())
            .count(),
        10
    );
    says(&plan(&[]), &["exposed", "4096", "linear"]);
}
