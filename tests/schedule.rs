//! The learning rate that a run uses: scaling, warm-up and drops, also after a restart.

mod support;

use std::time::Duration;

use support::{Job, Sandbox, launch};

const SETTINGS: [&str; 8] = [
    "train.epochs=3",
    "train.lr=0.04",
    "train.base_batch=4",
    "train.images_per_rank=2",
    "train.lr_steps=[1, 2]",
    "train.warmup_steps=2",
    "train.warmup_ratio=0.5",
    "eval.every_epochs=0",
];

/// Epoch and learning rate of each step.
fn rates(sandbox: &Sandbox, work: &str) -> Vec<(u64, f64)> {
    let rows = sandbox.steps(work);
    rows.iter().map(|r| (r["epoch"].as_u64().unwrap(), r["lr"].as_f64().unwrap())).collect()
}

/// What the settings say for a rate of `full` after the warm-up.
fn expected(epochs: &[(u64, f64)], full: f64) -> Vec<f64> {
    let first = epochs[0].0;
    let of = |(step, (epoch, _)): (usize, &(u64, f64))| match step {
        0 => 0.5 * full,
        1 => 0.75 * full,
        _ => full * 0.1f64.powi((epoch - first) as i32),
    };
    epochs.iter().enumerate().map(of).collect()
}

fn assert_rates(found: &[(u64, f64)], full: f64) {
    let epochs: std::collections::BTreeSet<u64> = found.iter().map(|r| r.0).collect();
    assert!(epochs.len() == 3 && found.len() >= 18, "{found:?}");
    for (step, (expected, (_, rate))) in expected(found, full).iter().zip(found).enumerate() {
        assert!((rate - expected).abs() < 1e-15, "step {step}: {rate}, expected {expected}");
    }
}

#[test]
fn the_rate_is_scaled_warmed_up_and_dropped() {
    let sandbox = Sandbox::new();
    // Half the base batch: half the rate.
    sandbox.train(0, "scaled", &SETTINGS);
    let scaled = rates(&sandbox, "scaled");
    assert_rates(&scaled, 0.02);
    let mut unscaled = SETTINGS.to_vec();
    unscaled.push("train.lr_scaling=none");
    sandbox.train(0, "unscaled", &unscaled);
    assert_rates(&rates(&sandbox, "unscaled"), 0.04);
    // The same over a stop in the second epoch, of a run that would go on for long.
    let mut long = SETTINGS.to_vec();
    long[0] = "train.epochs=1000";
    let args = sandbox.train_args("stopped", &long);
    let job = Job::start(launch(0, "dw-train").args(&args));
    job.wait_until("the second epoch", || sandbox.rows_so_far("stopped").len() > 7);
    job.signal("USR1");
    let (code, log) = job.wait(Duration::from_mins(1));
    assert_eq!(code, Some(75), "{log}");
    let stopped = sandbox.steps("stopped").len();
    let goes_on = format!("train.max_steps={}", stopped + 5);
    sandbox.train(0, "stopped", &[&long[..], &[&goes_on]].concat());
    let found = rates(&sandbox, "stopped");
    assert_eq!(found.len(), stopped + 5);
    for (step, (epoch, rate)) in found.iter().enumerate().skip(2) {
        let drops = (epoch - found[0].0).min(2) as i32;
        let expected = 0.02 * 0.1f64.powi(drops);
        assert!((rate - expected).abs() < 1e-15, "step {step}: {rate}, expected {expected}");
    }
}
