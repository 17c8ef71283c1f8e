//! Runs of `dw-pack` that fail, are killed, or are repeated.

mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use support::{Set, fails, files, ok, pack, words};

#[test]
fn packing_again_replaces_a_pack_and_resume_keeps_it() {
    let set = Set::new();
    ok(&[set.path()]);
    let before = files(&set.file("shards"));
    assert!(ok(&[set.path(), "--resume"]).contains("kept"));
    assert_eq!(files(&set.file("shards")), before);
    ok(&[set.path(), "--pixels", "jpeg"]);
    let after = files(&set.file("shards"));
    assert_eq!(after.len(), before.len(), "the shards of the previous pack are removed");
    ok(&["verify", set.file("shards").to_str().unwrap()]);
}

/// Killed at various moments: a split with an index is complete, and `--resume` gives the same
/// bytes as an uninterrupted run.
#[test]
fn a_killed_pack_resumes_to_the_same_bytes() {
    let set = Set { dir: tempfile::tempdir().unwrap() };
    let options = "--images 120 --val 1 --seed 2 --classes 3 --side 160";
    ok(&[&["synth", set.path()], &*words(options)].concat());
    let args = |out: &str| -> Vec<String> {
        let options = words("--split train2017 --shard-size 64KiB --resume");
        let all = [&[set.path(), "-o", out], &*options].concat();
        all.into_iter().map(str::to_owned).collect()
    };
    let command = |out: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dw-pack"));
        command.args(args(out.to_str().unwrap())).stderr(Stdio::null()).stdout(Stdio::null());
        command
    };
    let uninterrupted = set.file("uninterrupted");
    let start = std::time::Instant::now();
    assert!(command(&uninterrupted).status().unwrap().success());
    let duration = start.elapsed();
    let expected = files(&uninterrupted);
    for round in 1..=8u32 {
        let out = set.file(&format!("out{round}"));
        for _ in 0..2 {
            let mut child = command(&out).spawn().unwrap();
            std::thread::sleep(duration * round / 9);
            // SIGKILL; the process may have ended already.
            let _ = child.kill();
            child.wait().unwrap();
            if let Ok(split) = dw_shards::Split::open(&out, "train2017") {
                assert!(
                    split.verify(|| ()).is_empty() && split.len() == 120,
                    "a split with an index is complete"
                );
            }
        }
        assert!(command(&out).status().unwrap().success());
        let found = files(&out);
        assert!(found.iter().map(|f| &f.0).eq(expected.iter().map(|f| &f.0)), "round {round}");
        assert!(found == expected, "round {round}");
        assert!(!out.join(".train2017.writing").exists(), "round {round}");
    }
}

/// Interrupted between the last shard and the index.
#[test]
fn a_pack_that_failed_after_its_last_shard_resumes() {
    for shard_size in ["32KiB", "1MiB"] {
        let set = Set::new();
        let (one, two) = (set.file("one"), set.file("two"));
        let run = |out: &Path, more: &[&str]| {
            let options = ["--split", "train2017", "--shard-size", shard_size];
            pack(&[&[set.path(), "-o", out.to_str().unwrap()], &options[..], more].concat())
        };
        assert!(run(&one, &[]).status.success());
        let first =
            files(&one).into_iter().map(|f| f.0).find(|n| n.ends_with("-00000.dwshard")).unwrap();
        // A folder with the name of the first shard makes the rename fail.
        std::fs::create_dir_all(two.join(&first).join("x")).unwrap();
        assert_eq!(run(&two, &[]).status.code(), Some(3));
        std::fs::remove_dir_all(two.join(&first)).unwrap();
        let again = run(&two, &["--resume"]);
        assert!(again.status.success());
        assert!(String::from_utf8_lossy(&again.stderr).contains("shards kept"));
        assert!(files(&one) == files(&two), "{shard_size}");
    }
}

/// A damaged image at the end of a pack.
#[test]
fn a_failed_pack_resumes_after_its_finished_shards() {
    let set = Set::new();
    let last = std::fs::read_dir(set.file("train2017"))
        .unwrap()
        .flatten()
        .map(|e| e.path())
        .max()
        .unwrap();
    let original = std::fs::read(&last).unwrap();
    std::fs::write(&last, &original[..original.len() / 2]).unwrap();
    let args = [set.path(), "--split", "train2017", "--shard-size", "32KiB", "--jobs", "1"];
    let text = fails(&args, 3);
    assert!(text.contains("--resume"), "{text}");
    std::fs::write(&last, original).unwrap();
    let done = pack(&[&args[..], &["--resume"]].concat());
    assert!(String::from_utf8_lossy(&done.stderr).contains("shards kept"));
    ok(&["verify", set.file("shards").to_str().unwrap()]);
    assert_eq!(dw_shards::Split::open(&set.file("shards"), "train2017").unwrap().len(), 9);
}

#[test]
fn a_failed_pack_keeps_the_previous_one() {
    let set = Set::new();
    ok(&[set.path()]);
    let before = files(&set.file("shards"));
    std::fs::remove_file(set.first_image()).unwrap();
    fails(&[set.path()], 3);
    assert_eq!(files(&set.file("shards")), before);
}

/// A limit on the size of files makes writing the second shard fail when its buffer is flushed.
#[test]
fn a_shard_that_cannot_be_written_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("images/train")).unwrap();
    std::fs::write(dir.path().join("classes.txt"), "cat\n").unwrap();
    for (name, side) in [("a", 32), ("b", 256)] {
        let data = (0..3 * side * side).map(|i| (i * 7919 % 251) as u8).collect();
        let image = dw_shards::pixels::Rgb { width: side, height: side, data };
        let path = dir.path().join("images/train").join(name);
        let jpeg = dw_shards::pixels::encode_jpeg(&image, 95).unwrap();
        std::fs::write(path.with_extension("jpg"), jpeg).unwrap();
        std::fs::write(path.with_extension("txt"), "0 0.5 0.5 0.5 0.5\n").unwrap();
    }
    // Without the trap, the signal would end the process.
    let limited = "trap '' XFSZ; ulimit -f 20; exec \"$0\" \"$1\" --pixels jpeg \
                   --shard-size 32KiB --jobs 1";
    let program = env!("CARGO_BIN_EXE_dw-pack");
    let done = Command::new("sh")
        .args(["-c", limited, program, dir.path().to_str().unwrap()])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&done.stderr);
    assert!(!done.status.success() && text.contains("cannot write"), "{text}");
    let left = files(&dir.path().join("shards/.train.writing"));
    let left: Vec<&str> = left.iter().map(|f| f.0.as_str()).collect();
    assert_eq!(left, ["00000", "00000.done"]);
}

/// What the error of a damaged image suggests: leave it out, and continue after the finished
/// shards.
#[test]
fn finished_shards_are_kept_when_images_are_skipped_from_then_on() {
    let set = Set::new();
    let image = set.file("train2017/000000000009.jpg");
    let original = std::fs::read(&image).unwrap();
    std::fs::write(&image, &original[..original.len() / 2]).unwrap();
    let args = [set.path(), "--split", "train2017", "--shard-size", "32KiB", "--jobs", "1"];
    fails(&args, 3);
    let skip = [&args[..], &["--resume", "--bad-images", "skip"]].concat();
    let done = pack(&skip);
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(text.contains("shards kept") && text.contains("1 images left out"), "{text}");
    assert_eq!(dw_shards::Split::open(&set.file("shards"), "train2017").unwrap().len(), 8);
    // Finished shards of a run with other options are not used, and a message says so.
    fails(&args, 3);
    let other = ["--resume", "--bad-images", "skip", "--level", "9"];
    let done = pack(&[&args[..], &other].concat());
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(text.contains("are not used") && !text.contains("shards kept"), "{text}");
}

/// Shards of the run without `skip` and of the first run with it are kept.
#[test]
fn shards_of_two_interrupted_runs_are_kept() {
    let set = Set::new();
    let image = |n: usize| set.file(&format!("train2017/00000000000{n}.jpg"));
    let truncated = std::fs::read(image(5)).unwrap();
    std::fs::write(image(5), &truncated[..truncated.len() / 2]).unwrap();
    let args = [set.path(), "--split", "train2017", "--shard-size", "16KiB", "--jobs", "1"];
    let skip = [&args[..], &["--resume", "--bad-images", "skip"]].concat();
    let finished = || {
        let all = files(&set.file("shards/.train2017.writing"));
        all.iter().filter(|(name, _)| name.contains(".done")).count()
    };
    fails(&args, 3);
    let first = finished();
    // An image outside the folder is not skipped.
    let elsewhere = tempfile::tempdir().unwrap();
    let outside = elsewhere.path().join("a.jpg");
    std::fs::rename(image(9), &outside).unwrap();
    std::os::unix::fs::symlink(&outside, image(9)).unwrap();
    fails(&skip, 3);
    let second = finished();
    assert!(0 < first && first < second, "{first} and {second} shards");
    std::fs::remove_file(image(9)).unwrap();
    std::fs::rename(&outside, image(9)).unwrap();
    let text = String::from_utf8_lossy(&pack(&skip).stderr).into_owned();
    assert!(text.contains(&format!("{second} shards kept")), "{text}");
    assert_eq!(dw_shards::Split::open(&set.file("shards"), "train2017").unwrap().len(), 8);
}
