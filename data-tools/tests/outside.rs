//! Pictures that are no regular files, too long, or outside their folder.

mod support;

use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::json;
use support::{Set, fails, files, ok, pack_within};

fn fifo(path: &Path) {
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a valid, terminated path.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
}

/// Packing ends within a deadline with this code; returns what it said.
fn ends(args: &[&str], code: i32) -> String {
    let out = pack_within(args, &[], 30);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{text}");
    text
}

#[test]
fn pipes_devices_and_huge_files_are_no_pictures() {
    let set = Set::new();
    let first = set.first_image();
    let place = |make: &dyn Fn(&Path)| {
        std::fs::remove_file(&first).unwrap();
        make(&first);
    };
    let train = [set.path(), "--split", "train2017"];
    let outside = [set.path(), "--split", "train2017", "--allow-outside"];
    place(&|p| fifo(p));
    for args in [&train[..], &outside[..]] {
        let text = ends(args, 3);
        assert!(text.contains("000000000001.jpg") && text.contains("found a pipe"), "{text}");
    }
    place(&|p| symlink("/dev/zero", p).unwrap());
    assert!(ends(&train, 3).contains("--allow-outside"));
    let text = ends(&outside, 3);
    assert!(text.contains("expected a regular file, found a device"), "{text}");
    place(&|p| std::fs::File::create(p).unwrap().set_len(513 << 20).unwrap());
    let text = ends(&train, 3);
    assert!(text.contains("the limit is 512 MiB"), "{text}");
    let skipped = ends(&[&train[..], &["--bad-images", "skip"]].concat(), 0);
    assert!(skipped.contains("1 images left out"), "{skipped}");
}

#[test]
fn annotations_from_a_pipe_are_refused() {
    let set = Set::new();
    std::fs::remove_file(set.json()).unwrap();
    fifo(&set.json());
    let text = ends(&[set.path(), "--split", "train2017"], 3);
    assert!(text.contains("instances_train2017.json"), "{text}");
    assert!(text.contains("found a pipe") && text.contains("hint: save the annotations"), "{text}");
}

#[test]
fn file_names_that_lead_out_need_the_option() {
    let set = Set::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("a.jpg");
    std::fs::rename(set.first_image(), &target).unwrap();
    std::fs::copy(&target, set.file("up.jpg")).unwrap();
    for (name, word) in [
        (target.to_str().unwrap().to_owned(), "is an absolute path"),
        ("../up.jpg".to_owned(), "leaves the folder by `..`"),
    ] {
        set.edit(|v| v["images"][0]["file_name"] = json!(name));
        for more in [&[][..], &["--bad-images", "skip"]] {
            let text = fails(&[&[set.path(), "--split", "train2017"], more].concat(), 3);
            let place = text.contains("images[0] (id 1)") && text.contains(&name);
            assert!(place && text.contains(word), "{text}");
            assert!(text.contains("hint: --allow-outside"), "{text}");
        }
        let out = set.file("out");
        let out = out.to_str().unwrap();
        ok(&[set.path(), "-o", out, "--split", "train2017", "--allow-outside"]);
        ok(&["verify", out]);
        let back = tempfile::tempdir().unwrap();
        ok(&["export", out, back.path().to_str().unwrap()]);
        let split = dw_shards::Split::open(Path::new(out), "train2017").unwrap();
        let kept = split.record(0).unwrap().annotations.file_name;
        assert_eq!(kept, name.trim_start_matches("../").trim_start_matches('/'));
    }
    set.edit(|v| v["images"][0]["file_name"] = json!("/"));
    let text = fails(&[set.path(), "--split", "train2017", "--allow-outside"], 3);
    assert!(text.contains("images[0]") && !text.contains("hint: --allow-outside"), "{text}");
}

#[test]
fn links_may_not_leave_the_folder_but_the_folder_may_be_one() {
    let set = Set::new();
    let store = tempfile::tempdir().unwrap();
    let folder = store.path().join("images");
    std::fs::rename(set.file("train2017"), &folder).unwrap();
    symlink(&folder, set.file("train2017")).unwrap();
    // A link inside the folder is no way out.
    std::fs::rename(folder.join("000000000001.jpg"), folder.join("real.jpg")).unwrap();
    symlink("real.jpg", folder.join("000000000001.jpg")).unwrap();
    ok(&[set.path(), "--split", "train2017"]);
    let before = files(&set.file("shards"));
    std::fs::rename(folder.join("real.jpg"), store.path().join("real.jpg")).unwrap();
    std::fs::remove_file(folder.join("000000000001.jpg")).unwrap();
    symlink(store.path().join("real.jpg"), folder.join("000000000001.jpg")).unwrap();
    for more in [&[][..], &["--bad-images", "skip"]] {
        let text = fails(&[&[set.path(), "--split", "train2017"], more].concat(), 3);
        assert!(
            text.contains("000000000001.jpg") && text.contains("is a link to a file"),
            "{text}"
        );
        assert!(text.contains("hint: --allow-outside"), "{text}");
    }
    assert!(files(&set.file("shards")) == before, "the earlier pack stays");
    ok(&[set.path(), "--split", "train2017", "--allow-outside"]);
    assert_eq!(dw_shards::Split::open(&set.file("shards"), "train2017").unwrap().len(), 9);
}

#[test]
fn split_names_that_cannot_be_files_are_refused() {
    let set = Set::new();
    for name in ["../train2017", "/etc", "", "annotations", "shards", "a\u{1b}[2J"] {
        let text = fails(&[set.path(), "--split", name], 2);
        assert!(text.contains("--split: the name") && !text.contains('\u{1b}'), "{text}");
    }
    let text = fails(&[set.path(), "--split", "val2017", "--split", "val2017"], 2);
    assert!(text.contains("given twice"), "{text}");
    for name in ["..", "a\u{1b}[2J", "shards"] {
        let json = set.file(&format!("annotations/instances_{name}.json"));
        std::fs::copy(set.json(), &json).unwrap();
        let text = fails(&[set.path()], 2);
        let named = text.contains("instances_") && text.contains("the split's name");
        assert!(named && !text.contains('\u{1b}'), "{text}");
        ok(&[set.path(), "--split", "val2017"]);
        std::fs::remove_file(json).unwrap();
    }
}
