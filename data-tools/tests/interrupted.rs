//! `dw-pack` that fails, is killed, or runs again.

mod support;

use std::path::Path;
use std::process::Command;

use support::{Set, fails, files, ok, pack};

#[test]
fn packing_again_replaces_and_resume_keeps() {
    let set = Set::new();
    ok(&[set.path()]);
    let before = files(&set.file("shards"));
    assert!(ok(&[set.path(), "--resume"]).contains("kept from an earlier run"));
    assert_eq!(files(&set.file("shards")), before);
    ok(&[set.path(), "--pixels", "jpeg"]);
    let after = files(&set.file("shards"));
    assert_eq!(after.len(), before.len(), "the old shards are gone");
    ok(&["verify", set.file("shards").to_str().unwrap()]);
}

/// Killed at any moment: nothing half-written is taken for whole, and `--resume` ends with the very
/// bytes of a pack that nobody disturbed.
#[test]
fn kill_9_and_resume() {
    let set = Set { dir: tempfile::tempdir().unwrap() };
    ok(&[
        "synth",
        set.path(),
        "--images",
        "120",
        "--val",
        "1",
        "--seed",
        "2",
        "--classes",
        "3",
        "--side",
        "160",
    ]);
    let pack_args = |out: &Path| -> Vec<String> {
        let args = [
            set.path(),
            "-o",
            out.to_str().unwrap(),
            "--split",
            "train2017",
            "--shard-size",
            "64KiB",
            "--resume",
        ];
        args.map(str::to_owned).to_vec()
    };
    let undisturbed = set.file("undisturbed");
    let took = std::time::Instant::now();
    ok(&pack_args(&undisturbed).iter().map(String::as_str).collect::<Vec<_>>());
    let took = took.elapsed();
    for round in 1..=8u32 {
        let out = set.file(&format!("out{round}"));
        for _ in 0..2 {
            let mut child = Command::new(env!("CARGO_BIN_EXE_dw-pack"))
                .args(pack_args(&out))
                .stderr(std::process::Stdio::null())
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(took * round / 9);
            // SIGKILL; it may have ended already.
            let _ = child.kill();
            child.wait().unwrap();
            if let Ok(split) = dw_shards::Split::open(&out, "train2017") {
                assert!(
                    split.verify(|| ()).is_empty() && split.len() == 120,
                    "what has an index is whole"
                );
            }
        }
        let last = pack(&pack_args(&out).iter().map(String::as_str).collect::<Vec<_>>());
        assert!(last.status.success());
        let names =
            |list: Vec<(String, Vec<u8>)>| list.into_iter().map(|f| f.0).collect::<Vec<_>>();
        assert_eq!(names(files(&out)), names(files(&undisturbed)), "round {round}");
        assert!(files(&out) == files(&undisturbed), "round {round}");
        assert!(!out.join(".train2017.writing").exists(), "round {round}: leftovers");
    }
}

/// Stopped between its last shard and its index, a pack goes on without packing an image twice.
#[test]
fn a_pack_that_failed_at_the_very_end_goes_on() {
    for shard_size in ["32KiB", "1MiB"] {
        let set = Set::new();
        let (one, two) = (set.file("one"), set.file("two"));
        let args = |out: &Path| {
            [
                set.path(),
                "-o",
                out.to_str().unwrap(),
                "--split",
                "train2017",
                "--shard-size",
                shard_size,
            ]
            .map(str::to_owned)
        };
        let run = |out: &Path, more: &[&str]| {
            pack(
                &args(out)
                    .iter()
                    .map(String::as_str)
                    .chain(more.iter().copied())
                    .collect::<Vec<_>>(),
            )
        };
        assert!(run(&one, &[]).status.success());
        let first =
            files(&one).into_iter().map(|f| f.0).find(|n| n.ends_with("-00000.dwshard")).unwrap();
        // A folder stands where the first shard is to go.
        std::fs::create_dir_all(two.join(&first).join("x")).unwrap();
        assert_eq!(run(&two, &[]).status.code(), Some(3));
        std::fs::remove_dir_all(two.join(&first)).unwrap();
        let again = run(&two, &["--resume"]);
        assert!(
            again.status.success()
                && String::from_utf8_lossy(&again.stderr)
                    .contains("shards kept from an interrupted run")
        );
        assert!(files(&one) == files(&two), "{shard_size}");
    }
}

/// A failing image late in a pack does not cost the shards before it.
#[test]
fn a_failed_pack_goes_on_behind_its_finished_shards() {
    let set = Set::new();
    let last = std::fs::read_dir(set.file("train2017"))
        .unwrap()
        .flatten()
        .map(|e| e.path())
        .max()
        .unwrap();
    let whole = std::fs::read(&last).unwrap();
    std::fs::write(&last, &whole[..whole.len() / 2]).unwrap();
    let args = [set.path(), "--split", "train2017", "--shard-size", "32KiB", "--jobs", "1"];
    let text = fails(&args, 3);
    assert!(text.contains("finished shards are kept") && text.contains("--resume"), "{text}");
    std::fs::write(&last, whole).unwrap();
    let done = pack(&[&args[..], &["--resume"]].concat());
    assert!(String::from_utf8_lossy(&done.stderr).contains("shards kept from an interrupted run"));
    ok(&["verify", set.file("shards").to_str().unwrap()]);
    assert_eq!(dw_shards::Split::open(&set.file("shards"), "train2017").unwrap().len(), 9);
}

#[test]
fn a_failed_pack_keeps_the_earlier_one() {
    let set = Set::new();
    ok(&[set.path()]);
    let before = files(&set.file("shards"));
    std::fs::remove_file(set.first_image()).unwrap();
    fails(&[set.path()], 3);
    assert_eq!(files(&set.file("shards")), before);
}
