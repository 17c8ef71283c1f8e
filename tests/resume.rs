//! Checkpoints against kills, full disks and folders that cannot be written (pain 14). `DW_KILLS` sets the number of kills.

mod support;

use std::process::Command;
use std::time::Duration;

use support::{Job, Sandbox, assert_contains, bin, launch, processes, rounds, stderr};

/// Kill -9 of the whole job at moments all over a run that writes checkpoints all the time: each start finds a whole one, and
/// the end is that of an undisturbed run, to the last bit.
#[test]
fn kills_at_any_moment_lose_nothing() {
    let sandbox = Sandbox::new();
    let kills = rounds("DW_KILLS", 5);
    let steps = format!("train.max_steps={}", 8 * kills + 10);
    let sets = ["eval.every_epochs=0", "checkpoint.every_steps=1", steps.as_str()];
    sandbox.train(2, "whole", &sets);
    let (mut random, mut killed) = (0x2545_f491_4f6c_dd1du64, 0);
    for kill in 0..kills {
        // Xorshift: moments all over the run, the same every time.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let job = Job::start(launch(2, "dw-train").args(sandbox.train_args("w", &sets)));
        if kill % 5 > 0 {
            job.until(" INFO step ");
        }
        std::thread::sleep(Duration::from_millis(random % 700));
        let _ = Command::new("pkill").args(["-KILL", "-f", &sandbox.path("w")]).status();
        let (code, text) = job.end(Duration::from_secs(20));
        assert!(!text.contains("passing over"), "kill {kill}: {text}");
        assert!(!text.contains("error: "), "kill {kill}: {text}");
        killed += usize::from(code != Some(0));
        while !processes(&sandbox.path("w")).is_empty() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    assert!(killed * 2 > kills, "only {killed} of {kills} met a running job");
    sandbox.train(2, "w", &sets);
    assert_eq!(sandbox.losses("w"), sandbox.losses("whole"));
}

/// An evaluation that a run did not get to, or that a signal ended, is made up by the next start, with the same numbers.
#[test]
fn a_missed_evaluation_is_made_up() {
    let sandbox = Sandbox::with_images(14, 300);
    let sets = ["train.epochs=1"];
    sandbox.train(2, "whole", &sets);
    let ap = |work: &str| {
        sandbox.rows(work).into_iter().find(|r| r.contains_key("AP")).map(|r| r["AP"].clone())
    };
    assert!(ap("whole").is_some());
    // As after a kill in the evaluation at the run's very end.
    let metrics = sandbox.path("whole") + "/metrics.jsonl";
    let text = std::fs::read_to_string(&metrics).unwrap();
    let left: Vec<&str> = text.split_inclusive('\n').filter(|l| !l.contains("\"AP\"")).collect();
    std::fs::write(&metrics, left.concat()).unwrap();
    sandbox.train(2, "whole", &sets);
    let made_up = ap("whole");
    assert!(made_up.is_some());
    let job = Job::start(launch(2, "dw-train").args(sandbox.train_args("w", &sets)));
    job.until(" INFO checkpoint ");
    job.signal("USR1");
    let (code, text) = job.end(Duration::from_mins(1));
    assert_eq!((code, ap("w")), (Some(75), None), "{text}");
    sandbox.train(2, "w", &sets);
    assert_eq!(ap("w"), made_up);
    sandbox.train(2, "w", &sets);
    assert_eq!(
        sandbox.rows("w").iter().filter(|r| r.contains_key("AP")).count(),
        1,
        "and once is enough"
    );
}

/// Runs a shell line in a mount namespace of its own; `None` where the system does not allow that.
fn in_own_mounts(line: &str) -> Option<std::process::Output> {
    let options = ["-rm", "-m"]
        .into_iter()
        .find(|o| Command::new("unshare").args([o, "true"]).status().is_ok_and(|s| s.success()))?;
    Some(Command::new("unshare").args([options, "sh", "-c", line]).output().unwrap())
}

fn line(sandbox: &Sandbox, work: &str, mount: &str, sets: &[&str]) -> String {
    let args: Vec<String> =
        sandbox.train_args(work, sets).iter().map(|a| format!("'{a}'")).collect();
    let checkpoints = sandbox.path(work) + "/checkpoints";
    let shown = format!("ls -A '{checkpoints}'");
    format!(
        "mkdir -p '{checkpoints}' && {mount} '{checkpoints}' || exit 99; '{}' {}; code=$?; {shown}; exit $code",
        bin("dw-train").display(),
        args.join(" ")
    )
}

/// A checkpoint of the smoke network is 6.7 MB: one fits, two do not.
#[test]
fn a_full_disk_ends_or_not_as_configured() {
    let sandbox = Sandbox::new();
    let run = |work: &str, mount: &str, on_error: &str| {
        let on_error = format!("checkpoint.on_error={on_error}");
        let sets =
            ["eval.every_epochs=0", "checkpoint.every_steps=4", "train.max_steps=12", &on_error];
        let out = in_own_mounts(&line(&sandbox, work, mount, &sets))?;
        let text = stderr(&out);
        assert_eq!(out.status.code(), Some(3), "{text}");
        Some((text, String::from_utf8(out.stdout).unwrap()))
    };
    let small = "mount -t tmpfs -o size=10m none";
    let Some((text, left)) = run("stop", small, "stop") else {
        println!("skipped: no mount namespaces here");
        return;
    };
    assert_contains(
        &text,
        &["error: checkpoint of step 8", "No space left on device", "hint: free space"],
    );
    assert_eq!(
        left.trim(),
        "step-00000004",
        "the older one is whole, nothing half-written is left"
    );
    assert!(sandbox.steps("stop").len() < 12);
    let (text, left) = run("continue", small, "continue").unwrap();
    assert_contains(
        &text,
        &["No space left on device", "training goes on without it", "error: checkpoint of step 12"],
    );
    assert_eq!(left.trim(), "step-00000004");
    assert_eq!(sandbox.steps("continue").len(), 12);
    let (text, left) = run("readonly", "mount -t tmpfs -o ro none", "stop").unwrap();
    assert_contains(&text, &["error: checkpoint of step 4", "Read-only file system"]);
    assert_eq!(left.trim(), "");
}
