//! Thread limits, control characters in output, concurrent processes.

mod support;

use serde_json::{Value, json};
use support::test_pack::TestPack;
use support::{Set, fails, ok, pack, pack_within};

#[test]
fn more_than_four_threads_per_core_are_rejected() {
    let set = Set::new();
    let out = pack_within(&[set.path(), "--jobs", "100000"], &[], 60);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(2), "{text}");
    assert!(text.contains("--jobs") && text.contains("found 100000"), "{text}");
    assert!(!set.file("shards").exists());
    let cores = std::thread::available_parallelism().unwrap().get();
    let out = pack(&[set.path(), "--jobs", &(4 * cores).to_string()]);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() && text.contains(&format!("share {cores} cores")), "{text}");
    let shards = set.file("shards");
    for args in [&["verify", shards.to_str().unwrap()][..], &[set.path()]] {
        for wrong in ["100000", "4x", "-1"] {
            let out = pack_within(args, &[("RAYON_NUM_THREADS", wrong)], 60);
            let text = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(out.status.code() == Some(2) && text.contains("RAYON_NUM_THREADS"), "{text}");
        }
    }
}

/// With a stack larger than the address space no thread can be started.
#[test]
fn threads_that_cannot_be_started_give_exit_code_5() {
    let set = Set::new();
    ok(&[set.path(), "--split", "val2017"]);
    let (shards, new) = (set.file("shards"), set.file("new"));
    let (shards, new) = (shards.to_str().unwrap(), new.to_str().unwrap());
    let commands: [&[&str]; 4] =
        [&[set.path()], &["verify", shards], &["export", shards, new], &["synth", new]];
    for args in commands {
        let out = pack_within(args, &[("RUST_MIN_STACK", "1152921504606846976")], 60);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(5), "{args:?}: {text}");
        assert!(text.starts_with("error: ") && text.contains("hint: "), "{text}");
    }
}

#[test]
fn a_split_that_another_process_packs_is_locked() {
    let set = Set::new();
    let temporary = set.file("shards/.val2017.writing");
    std::fs::create_dir_all(&temporary).unwrap();
    std::fs::write(temporary.join("00000"), "half a shard").unwrap();
    let other = std::fs::File::open(&temporary).unwrap();
    other.lock().unwrap();
    for more in [&[][..], &["--resume"]] {
        let text = fails(&[&[set.path(), "--split", "val2017"], more].concat(), 2);
        assert!(text.contains(".val2017.writing"), "{text}");
        assert_eq!(std::fs::read(temporary.join("00000")).unwrap(), b"half a shard");
    }
    drop(other);
    ok(&[set.path(), "--split", "val2017"]);
    ok(&["verify", set.file("shards").to_str().unwrap()]);
}

/// Whether the text contains no unsafe characters except line breaks.
fn is_plain(text: &[u8]) -> bool {
    let text = std::str::from_utf8(text).unwrap();
    !text.chars().any(|c| c != '\n' && dw_base::text::is_unsafe(c))
}

#[test]
fn control_characters_in_names_are_escaped() {
    const NAME: &str = "e\u{1b}]0;title\u{7}\u{9b}31m\u{202e}\r\nerror: none.jpg";
    let set = Set::new();
    set.edit(|v| {
        v["images"][0]["file_name"] = json!(NAME);
        v["categories"][0]["name"] = json!(NAME);
    });
    let train = [set.path(), "--split", "train2017"];
    let missing = pack(&train);
    assert_eq!(missing.status.code(), Some(3));
    assert!(is_plain(&missing.stderr) && missing.stderr.ends_with(b"\n"));
    let text = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(text.contains(r"e\u{1b}]0;title") && !text.contains("\nerror:"), "{text}");
    let skipped = pack(&[&train[..], &["--bad-images", "skip"]].concat());
    assert!(skipped.status.success() && is_plain(&skipped.stderr) && is_plain(&skipped.stdout));
    // JSON has its own escapes.
    let json = ok(&["info", set.file("shards").to_str().unwrap(), "--json"]);
    assert!(is_plain(json.as_bytes()), "{json:?}");
    let info: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(info["categories"][0]["name"], NAME);

    let mut pack = TestPack::new(&[NAME]);
    pack.first_box().label = 9;
    pack.write(&set.file("invalid"));
    let folder = set.file("invalid");
    let out = support::pack(&["verify", folder.to_str().unwrap()]);
    assert!(out.status.code() == Some(3) && is_plain(&out.stderr));
    pack.first_box().label = 0;
    pack.images[0].pixels = vec![1; 8];
    let other = set.file("undecodable");
    pack.write(&other);
    let out = support::pack(&["verify", other.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(is_plain(&out.stderr) && text.contains(r"\u{1b}]0;title"), "{text}");
}
