//! Input files that are not regular files, too large, or outside the image folder.

mod support;

use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::json;
use support::{Set, fails, files, ok, pack_within};

/// Creates a named pipe.
fn fifo(path: &Path) {
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the path is a valid, null-terminated string.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
}

/// Runs `dw-pack`, which must end within 30 s with this exit code; returns its standard error.
fn ends(args: &[&str], code: i32) -> String {
    let out = pack_within(args, &[], 30);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{text}");
    text
}

#[test]
fn pipes_devices_and_large_files_are_rejected_as_images() {
    let set = Set::new();
    let first = set.first_image();
    let replace = |make: &dyn Fn(&Path)| {
        std::fs::remove_file(&first).unwrap();
        make(&first);
    };
    let train = [set.path(), "--split", "train2017"];
    let outside = [set.path(), "--split", "train2017", "--allow-outside"];
    replace(&|p| fifo(p));
    for args in [&train[..], &outside[..]] {
        let text = ends(args, 3);
        assert!(text.contains("000000000001.jpg") && text.contains("pipe"), "{text}");
    }
    replace(&|p| symlink("/dev/zero", p).unwrap());
    assert!(ends(&train, 3).contains("--allow-outside"));
    let text = ends(&outside, 3);
    assert!(text.contains("a device"), "{text}");
    replace(&|p| std::fs::File::create(p).unwrap().set_len(513 << 20).unwrap());
    let text = ends(&train, 3);
    assert!(text.contains("512 MiB"), "{text}");
    let skipped = ends(&[&train[..], &["--bad-images", "skip"]].concat(), 0);
    assert!(skipped.contains("1 images"), "{skipped}");
}

#[test]
fn annotations_from_a_pipe_are_rejected() {
    let set = Set::new();
    std::fs::remove_file(set.json()).unwrap();
    fifo(&set.json());
    let text = ends(&[set.path(), "--split", "train2017"], 3);
    assert!(text.contains("instances_train2017.json"), "{text}");
    assert!(text.contains("pipe") && text.contains("hint: "), "{text}");
}

#[test]
fn file_names_that_leave_the_folder_need_allow_outside() {
    let set = Set::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("a.jpg");
    std::fs::rename(set.first_image(), &target).unwrap();
    std::fs::copy(&target, set.file("up.jpg")).unwrap();
    for (name, word) in
        [(target.to_str().unwrap().to_owned(), "absolute path"), ("../up.jpg".to_owned(), "`..`")]
    {
        set.edit(|v| v["images"][0]["file_name"] = json!(name));
        for more in [&[][..], &["--bad-images", "skip"]] {
            let text = fails(&[&[set.path(), "--split", "train2017"], more].concat(), 3);
            let located = text.contains("images[0] (id 1)") && text.contains(&name);
            assert!(located && text.contains(word), "{text}");
            assert!(text.contains("--allow-outside"), "{text}");
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
    assert!(text.contains("images[0]") && !text.contains("--allow-outside"), "{text}");
}

#[test]
fn links_must_not_leave_the_folder_but_the_folder_can_be_a_link() {
    let set = Set::new();
    let store = tempfile::tempdir().unwrap();
    let folder = store.path().join("images");
    std::fs::rename(set.file("train2017"), &folder).unwrap();
    symlink(&folder, set.file("train2017")).unwrap();
    // A link to a file in the same folder.
    std::fs::rename(folder.join("000000000001.jpg"), folder.join("real.jpg")).unwrap();
    symlink("real.jpg", folder.join("000000000001.jpg")).unwrap();
    ok(&[set.path(), "--split", "train2017"]);
    let before = files(&set.file("shards"));
    std::fs::rename(folder.join("real.jpg"), store.path().join("real.jpg")).unwrap();
    std::fs::remove_file(folder.join("000000000001.jpg")).unwrap();
    symlink(store.path().join("real.jpg"), folder.join("000000000001.jpg")).unwrap();
    for more in [&[][..], &["--bad-images", "skip"]] {
        let text = fails(&[&[set.path(), "--split", "train2017"], more].concat(), 3);
        assert!(text.contains("000000000001.jpg") && text.contains("link"), "{text}");
        assert!(text.contains("--allow-outside"), "{text}");
    }
    assert!(files(&set.file("shards")) == before, "the previous pack is unchanged");
    ok(&[set.path(), "--split", "train2017", "--allow-outside"]);
    assert_eq!(dw_shards::Split::open(&set.file("shards"), "train2017").unwrap().len(), 9);
}

#[test]
fn split_names_that_are_not_valid_file_names_are_rejected() {
    let set = Set::new();
    for name in ["../train2017", "/etc", "", "annotations", "shards", "a\u{1b}[2J"] {
        let text = fails(&[set.path(), "--split", name], 2);
        assert!(text.contains("--split: ") && !text.contains('\u{1b}'), "{text}");
    }
    let text = fails(&[set.path(), "--split", "val2017", "--split", "val2017"], 2);
    assert!(text.contains("--split: `val2017`"), "{text}");
    for name in ["..", "a\u{1b}[2J", "shards"] {
        let json = set.file(&format!("annotations/instances_{name}.json"));
        std::fs::copy(set.json(), &json).unwrap();
        let text = fails(&[set.path()], 2);
        let named = text.contains("instances_") && text.contains("hint: ");
        assert!(named && !text.contains('\u{1b}'), "{text}");
        ok(&[set.path(), "--split", "val2017"]);
        std::fs::remove_file(json).unwrap();
    }
}

/// As the links of git-annex and DVC whose contents were not fetched: not images without objects.
#[test]
fn yolo_labels_that_cannot_be_read_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(file("images/train/x")).unwrap();
    std::fs::create_dir_all(file("labels/train")).unwrap();
    std::fs::write(file("data.yaml"), "train: images/train\ntest: images/test\nnames: [cat]\n")
        .unwrap();
    let picture = image::RgbImage::from_pixel(20, 10, image::Rgb([9, 90, 200]));
    for name in ["a.png", "x/b.png"] {
        picture.save(file("images/train").join(name)).unwrap();
    }
    std::fs::write(file("labels/train/a.txt"), "0 0.5 0.5 0.5 0.5\n").unwrap();
    let set = [dir.path().to_str().unwrap()];
    ok(&set);
    // The folder of the label is a file, so that the label is not merely missing.
    std::fs::write(file("labels/train/x"), "").unwrap();
    let text = fails(&set, 3);
    assert!(text.contains("labels/train/x/b.txt"), "{text}");
    std::fs::remove_file(file("labels/train/x")).unwrap();
    // In the split `test`, such labels do not count as missing either.
    for split in ["train", "test"] {
        std::fs::create_dir_all(file("labels").join(split)).unwrap();
        std::fs::create_dir_all(file("images").join(split)).unwrap();
        picture.save(file("images").join(split).join("c.png")).unwrap();
        let label = file("labels").join(split).join("c.txt");
        symlink("../.git/annex/objects/c", &label).unwrap();
        let text = fails(&set, 3);
        assert!(text.contains("c.txt: is a symbolic link to a file that"), "{text}");
        assert!(text.contains("dvc pull"), "{text}");
        std::fs::remove_file(label).unwrap();
    }
}
