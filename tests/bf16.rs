//! Training in bf16: losses are close to those in f32, and a resumed run is bit-exact.

mod support;

use support::{Sandbox, assert_contains, launch, output, run_failing, stderr};

const STEPS: usize = 20;

/// Losses of 20 steps on one rank.
fn losses(sandbox: &Sandbox, precision: &str, seed: usize) -> Vec<f64> {
    let work = format!("{precision}-{seed}");
    let (steps, seed) = (format!("train.max_steps={STEPS}"), format!("train.seed={seed}"));
    let precision = format!("train.precision={precision}");
    // With the learning rate of `smoke`, any rounding error grows to 3 % within 30 steps.
    let slow = ["eval.every_epochs=0", "train.lr=0.008", "train.warmup_steps=100"];
    sandbox.train(0, &work, &[&slow[..], &[&steps, &seed, &precision]].concat());
    let losses: Vec<f64> =
        sandbox.steps(&work).iter().map(|s| s["loss"].as_f64().unwrap()).collect();
    assert_eq!(losses.len(), STEPS);
    losses
}

/// For means over windows of five steps, bf16 differs from f32 with the same seed by less than f32
/// varies between three seeds.
#[test]
fn losses_differ_less_than_those_of_other_seeds() {
    let sandbox = Sandbox::new();
    let f32: Vec<_> = (0..3).map(|seed| losses(&sandbox, "f32", seed)).collect();
    let bf16 = losses(&sandbox, "bf16", 0);
    assert_ne!(bf16, f32[0], "bf16 is not f32");
    for window in 0..STEPS / 5 {
        let mean = |run: &[f64]| run[5 * window..5 * window + 5].iter().sum::<f64>() / 5.0;
        let seeds: Vec<f64> = f32.iter().map(|run| mean(run)).collect();
        let high = seeds.iter().copied().fold(f64::MIN, f64::max);
        let spread = high - seeds.iter().copied().fold(f64::MAX, f64::min);
        let off = (mean(&bf16) - seeds[0]).abs();
        assert!(off < spread, "window {window}: off by {off}, seeds of f32: {seeds:?}");
    }
}

/// Checkpoints hold parameters and momentum in f32, so an interrupted run on two ranks continues
/// exactly. Its evaluation is in bf16 too.
#[test]
fn a_resumed_run_continues_to_the_last_bit() {
    let sandbox = Sandbox::new();
    let sets = ["train.precision=bf16", "train.max_steps=8", "checkpoint.every_steps=2"];
    sandbox.train(2, "whole", &sets);
    let mut broken = launch(2, "dw-train");
    broken.args(sandbox.train_args("parts", &sets)).env("DW_FAULT", "nan@1:6");
    run_failing(&mut broken, 3);
    assert!(sandbox.newest_step("parts") == 4 && sandbox.steps("parts").len() < 6);
    sandbox.train(2, "parts", &sets);
    assert_eq!(sandbox.losses("parts"), sandbox.losses("whole"));
    let ap = |work: &str| sandbox.rows(work).iter().find_map(|r| r.get("AP").cloned()).unwrap();
    assert_eq!(ap("parts"), ap("whole"));
}

/// A CPU without matrix instructions for bf16 is a warning, not an error.
#[test]
fn a_cpu_without_amx_is_a_warning() {
    let sandbox = Sandbox::new();
    let sets = ["train.precision=bf16", "train.max_steps=1", "eval.every_epochs=0"];
    let log = stderr(&output(launch(0, "dw-train").args(sandbox.train_args("w", &sets))));
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    if cpu.contains(" amx_bf16") {
        assert!(!log.contains("has no AMX"), "{log}");
    } else {
        assert_contains(&log, &["train.precision", "bf16", "has no AMX"]);
    }
}
