//! A rank that fails, in every way a rank can: the whole job ends within seconds, says who and why, and has lost nothing
//! (pains 2 to 4 and 7). `DW_FAULT_ROUNDS` repeats it.

mod support;

use std::time::{Duration, Instant};

use support::{Job, Place, dw_launch, files, launch, processes, rounds, says};

/// From the fault to the end of the last process.
const END: Duration = Duration::from_secs(10);
/// What a rank waits for the others in these tests, seconds.
const DEADLINE: u64 = 3;

/// Fault, exit code under mpirun and under dw-launch, what dw-launch says.
const FAULTS: [(&str, i32, i32, &[&str]); 6] = [
    ("kill", 137, 4, &["rank 1 on ", "was lost: signal 9", "rank 0 on ", "was in collective #"]),
    ("exit", 7, 7, &["rank 1 on ", "was lost", "rank 0 on ", "was in collective #"]),
    ("panic", 70, 70, &["rank 1 on ", "failed first, with code 70: panicked"]),
    (
        "stop",
        4,
        4,
        &[
            "rank 0 on ",
            "gave up: waited ",
            " s for the others in collective #",
            "behind: rank 1 on ",
            "last calls of rank 0",
        ],
    ),
    ("oom", 5, 5, &["rank 1 on ", "failed first, with code 5", "can't allocate memory"]),
    (
        "nan",
        3,
        3,
        &["failed first, with code 3: step 5: the gradient's norm (NaN) is not a finite number"],
    ),
];

fn sets<'a>(more: &[&'a str]) -> Vec<&'a str> {
    ["eval.every_epochs=0", "checkpoint.every_steps=1", "train.step_deadline_s=3"]
        .iter()
        .chain(more)
        .copied()
        .collect()
}

/// Ends the job by a fault of rank 1 in step 5, then goes on to step 8.
fn rehearse(place: &Place, work: &str, fault: &str, supervised: bool) -> (Option<i32>, String) {
    let args = place.train_args(work, &sets(&["train.max_steps=8"]));
    let mut command =
        if supervised { dw_launch(2, &[], "dw-train") } else { launch(2, "dw-train") };
    let job = Job::start(command.args(args).env("DW_FAULT", format!("{fault}@1:5")));
    job.until("DW_FAULT: rank 1 fails");
    let failed = Instant::now();
    let (code, text) = job.end(END + Duration::from_secs(DEADLINE));
    while let [_, ..] = &processes(&place.path(work))[..] {
        assert!(
            failed.elapsed() < END + Duration::from_secs(DEADLINE),
            "{fault}: processes outlive the job: {text}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    place.train(2, work, &sets(&["train.max_steps=8"]));
    (code, text)
}

#[test]
fn a_failing_rank_ends_the_job_and_loses_nothing() {
    let place = Place::new();
    place.train(2, "whole", &sets(&["train.max_steps=8"]));
    for round in 0..rounds("DW_FAULT_ROUNDS", 1) {
        for (fault, plain, supervised, words) in FAULTS {
            for (code, by_us) in [(plain, false), (supervised, true)] {
                let work = format!("{fault}-{round}-{by_us}");
                let (found, text) = rehearse(&place, &work, fault, by_us);
                assert_eq!(found, Some(code), "{fault}, under dw-launch: {by_us}: {text}");
                if by_us {
                    says(&text, words);
                }
                assert_eq!(
                    place.losses(&work),
                    place.losses("whole"),
                    "{fault}, under dw-launch: {by_us}"
                );
            }
        }
    }
}

/// Pain 19: a shard that is cut short while it is mapped is a message and not a death without a word.
#[test]
fn a_lost_shard_file_is_named() {
    let place = Place::new();
    let job = Job::start(
        dw_launch(2, &[], "dw-train")
            .args(place.train_args("w", &sets(&["train.max_steps=100000"]))),
    );
    job.until(" INFO checkpoint ");
    let shard = files(&place.shards(), ".dwshard")
        .into_iter()
        .find(|f| f.to_string_lossy().contains("train2017"))
        .unwrap();
    std::fs::OpenOptions::new().write(true).open(&shard).unwrap().set_len(0).unwrap();
    let (code, text) = job.end(END);
    assert_eq!(code, Some(3), "{text}");
    says(&text, &["lost a mapped file: ", shard.to_str().unwrap(), "dw-pack verify"]);
    assert!(processes(&place.path("w")).is_empty());
}
