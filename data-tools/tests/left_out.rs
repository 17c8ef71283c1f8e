//! Nothing of a data set is left out, and no earlier result kept, without a message.

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use dw_shards::{Split, pixels};
use support::{Set, fails, ok, pack, with_orientation};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Standard error of a command that succeeds.
fn notes(args: &[&str]) -> String {
    let done = pack(args);
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{text}");
    text
}

fn jpeg(side: usize) -> Vec<u8> {
    let data = (0..3 * side * side).map(|i| (i * 7919 % 251) as u8).collect();
    pixels::encode_jpeg(&pixels::Rgb { width: side, height: side, data }, 95).unwrap()
}

/// A YOLO set of one split with one class; `images` are names and contents, all with one box.
fn yolo(dir: &Path, images: &[(&str, &[u8])]) {
    for folder in ["images/train", "labels/train"] {
        fs::create_dir_all(dir.join(folder)).unwrap();
    }
    fs::write(dir.join("data.yaml"), "train: images/train\nnames: [cat]\n").unwrap();
    for (name, content) in images {
        fs::write(dir.join("images/train").join(name), content).unwrap();
        let label = Path::new(name).with_extension("txt");
        fs::write(dir.join("labels/train").join(label), "0 0.5 0.5 0.5 0.5\n").unwrap();
    }
}

#[test]
fn all_jpeg_extensions_are_images_and_labels_without_image_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (set, image) = (dir.path().join("set"), jpeg(32));
    yolo(&set, &[("a.jpg", &image), ("b.jfif", &image), ("c.JPE", &image)]);
    for lone in ["d.txt", "e.txt", "classes.txt"] {
        fs::write(set.join("labels/train").join(lone), "").unwrap();
    }
    let said = notes(&[text(&set)]);
    assert!(said.contains("2 label files in ") && said.contains("have no image"), "{said}");
    assert_eq!(Split::open(&set.join("shards"), "train").unwrap().len(), 3);
}

#[test]
fn links_to_folders_need_allow_outside() {
    let dir = tempfile::tempdir().unwrap();
    let (set, more) = (dir.path().join("set"), dir.path().join("more"));
    yolo(&set, &[("a.jpg", &jpeg(32))]);
    fs::create_dir(&more).unwrap();
    fs::write(more.join("b.jpg"), jpeg(32)).unwrap();
    symlink(&more, set.join("images/train/more")).unwrap();
    let problem = fails(&[text(&set)], 3);
    assert!(problem.contains("train/more") && problem.contains("--allow-outside"), "{problem}");
    ok(&[text(&set), "--allow-outside"]);
    assert_eq!(Split::open(&set.join("shards"), "train").unwrap().len(), 2);
    // A cycle of links ends with an error.
    symlink(&set, more.join("up")).unwrap();
    assert!(fails(&[text(&set), "--allow-outside"], 3).contains("levels of folders"));
}

/// Boxes of YOLO are shares of the image's size, which is not in the labels.
#[test]
fn yolo_images_of_another_size_are_packed_again() {
    let dir = tempfile::tempdir().unwrap();
    let set = dir.path().join("set");
    yolo(&set, &[("a.jpg", &jpeg(32))]);
    ok(&[text(&set)]);
    assert!(ok(&[text(&set), "--resume"]).contains("kept"));
    yolo(&set, &[("a.jpg", &jpeg(64))]);
    assert!(!ok(&[text(&set), "--resume"]).contains("kept"));
    let record = Split::open(&set.join("shards"), "train").unwrap();
    let found = record.record(0).unwrap().annotations.boxes[0].bbox;
    assert_eq!(found, [16.0, 16.0, 32.0, 32.0]);
    let yaml = "train: images/train\nnames: [cat]\nkpt_shape: [2, 2]\n";
    fs::write(set.join("data.yaml"), yaml).unwrap();
    assert!(fails(&[text(&set), "--resume"], 3).contains("kpt_shape"));
}

/// How the boxes of a square image turn is for the user to say, also where bad images are left out.
#[test]
fn images_of_undecided_orientation_are_no_bad_images() {
    let dir = tempfile::tempdir().unwrap();
    let turned = with_orientation(&jpeg(32), 6);
    let set = dir.path().join("set");
    yolo(&set, &[("a.jpg", &turned), ("b.jpg", &jpeg(32))]);
    let options = ["--exif", "apply", "--bad-images", "skip"];
    let problem = fails(&[&[text(&set)], &options[..]].concat(), 3);
    assert!(problem.contains("a.jpg") && problem.contains("--exif-boxes stored"), "{problem}");
    let coco = Set::new();
    coco.edit(|v| {
        let first = v["images"].as_array_mut().unwrap().iter_mut().find(|i| i["id"] == 1).unwrap();
        (first["width"], first["height"]) = (128.into(), 128.into());
    });
    fs::write(coco.first_image(), with_orientation(&jpeg(128), 6)).unwrap();
    let args = [coco.path(), "--split", "train2017"];
    let problem = fails(&[&args, &options[..]].concat(), 3);
    assert!(problem.contains("image 1 ") && problem.contains("--exif-boxes stored"), "{problem}");
}

/// A class that no annotation file has can still have lists of its own.
#[test]
fn lists_of_classes_are_no_splits() {
    let set = Set::new();
    let voc = set.file("voc");
    ok(&[set.path(), "--split", "train2017"]);
    ok(&["export", text(&set.file("shards")), text(&voc), "--format", "voc"]);
    let lists = voc.join("ImageSets/Main");
    let all = fs::read_to_string(lists.join("train2017.txt")).unwrap();
    let of_class: Vec<String> = all.lines().map(|l| format!("{l} -1")).collect();
    fs::write(lists.join("ghost_train2017.txt"), of_class.join("\n")).unwrap();
    let said = ok(&[text(&voc)]);
    assert!(said.contains("train2017: 9 images") && !said.contains("ghost"), "{said}");
}

/// What `skip` left out is told again when the pack is kept.
#[test]
fn a_kept_pack_with_skipped_images_is_reported() {
    let set = Set::new();
    fs::write(set.first_image(), "no image").unwrap();
    let args = [set.path(), "--split", "train2017", "--bad-images", "skip"];
    assert!(notes(&args).contains("1 images left out"));
    assert!(notes(&[&args[..], &["--resume"]].concat()).contains("1 images were left out"));
}

/// Both parts of a divided set are checked as a whole.
#[test]
fn annotations_of_unknown_images_are_found_in_divided_sets() {
    let set = Set::new();
    let file = set.file("all.json");
    fs::rename(set.json(), &file).unwrap();
    let images = set.file("train2017");
    let args = ["--annotations", text(&file), "--images", text(&images), "--val", "30%"];
    let out = set.file("out");
    let args = [&args[..], &["-o", text(&out)]].concat();
    ok(&args);
    let mut v: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    v["annotations"][0]["image_id"] = 4711.into();
    fs::write(&file, v.to_string()).unwrap();
    assert!(fails(&args, 3).contains("`image_id` 4711"));
}
