//! `dw-pack` on data sets in the layouts of Pascal VOC, YOLO and Roboflow, and on single COCO
//! files.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::symlink;
use std::path::Path;

use dw_shards::Split;
use serde_json::Value;
use std::fs;
use support::{Set, fails, ok, pack};

/// Boxes of every image of a split: class name and `[x, y, w, h]`, by the stem of the file name.
type Boxes = BTreeMap<String, Vec<(String, [f64; 4], bool)>>;

fn boxes(shards: &Path, name: &str) -> Boxes {
    let split = Split::open(shards, name).unwrap();
    (0..split.len())
        .map(|i| {
            let record = split.record(i).unwrap();
            let stem = Path::new(&record.annotations.file_name).with_extension("");
            let boxes = record
                .annotations
                .boxes
                .iter()
                .map(|b| (split.categories()[b.label as usize].name.clone(), b.bbox, b.crowd));
            (stem.to_str().unwrap().to_owned(), boxes.collect())
        })
        .collect()
}

fn text(p: &Path) -> &str {
    p.to_str().unwrap()
}

/// A synthetic data set with integer box coordinates, in COCO's layout and as shards.
fn whole_pixels() -> Set {
    let set = Set::new();
    for split in ["train2017", "val2017"] {
        let path = set.file(&format!("annotations/instances_{split}.json"));
        let mut v: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for a in v["annotations"].as_array_mut().unwrap() {
            for side in a["bbox"].as_array_mut().unwrap() {
                *side = (side.as_f64().unwrap().floor() + 1.0).into();
            }
        }
        fs::write(&path, v.to_string()).unwrap();
    }
    ok(&[set.path(), "--pixels", "jpeg"]);
    set
}

/// The standard error of a command that succeeds.
fn notes(args: &[&str]) -> String {
    let out = pack(args);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{args:?}: {text}");
    text
}

#[test]
fn voc_and_yolo_forms_of_a_set_have_the_same_boxes() {
    let set = whole_pixels();
    let shards = set.file("shards");
    for format in ["voc", "yolo"] {
        let (form, packed) = (set.file(format), set.file(&format!("{format}-shards")));
        ok(&["export", text(&shards), text(&form), "--format", format]);
        let said = notes(&[text(&form), "-o", text(&packed)]);
        assert_eq!(said.contains("count pixels from 1"), format == "voc", "{said}");
        for split in ["train2017", "val2017"] {
            let mut expected = boxes(&shards, split);
            if format == "yolo" {
                for image in expected.values_mut() {
                    image.retain(|b| !b.2);
                }
            }
            let name = if format == "yolo" { &split[..split.len() - 4] } else { split };
            assert_eq!(boxes(&packed, name), expected, "{format} {split}");
        }
    }
}

/// A small VOC set without lists: three images, one object each.
fn voc(dir: &Path) {
    for folder in ["Annotations", "JPEGImages"] {
        fs::create_dir_all(dir.join(folder)).unwrap();
    }
    let picture = image::RgbImage::from_pixel(20, 10, image::Rgb([9, 90, 200]));
    for (n, name) in ["a", "b", "c"].into_iter().enumerate() {
        picture.save(dir.join(format!("JPEGImages/{name}.png"))).unwrap();
        let xml = format!(
            "<annotation><filename>wrong/{name}.bmp</filename><size><width>20</width>\
             <height>10</height></size><object><name>dog</name><difficult>{}</difficult><bndbox>\
             <xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>{}</ymax></bndbox></object>\
             </annotation>",
            n % 2,
            5 + n
        );
        fs::write(dir.join(format!("Annotations/{name}.xml")), xml).unwrap();
    }
}

#[test]
fn sets_without_splits_are_divided_by_the_names_of_their_images() {
    let dir = tempfile::tempdir().unwrap();
    let (set, out) = (dir.path().join("voc"), dir.path().join("out"));
    voc(&set);
    let said = notes(&[text(&set), "-o", text(&out), "--val", "35%"]);
    assert!(said.contains("the set has no splits: 0.35") && said.contains("1 difficult"), "{said}");
    let (train, val) = (boxes(&out, "train"), boxes(&out, "val"));
    assert_eq!(train.len() + val.len(), 3);
    let all: Boxes = train.into_iter().chain(val).collect();
    assert_eq!(all["a"], [("dog".to_owned(), [0.0, 0.0, 20.0, 5.0], false)]);
    assert_eq!(all["b"], [("dog".to_owned(), [0.0, 0.0, 20.0, 6.0], true)]);
    let kept = notes(&[text(&set), "-o", text(&out), "--val", "0.35", "--difficult", "drop"]);
    assert!(kept.contains("left out"), "{kept}");
    // COCO has no such mark: the option would do nothing.
    let coco = whole_pixels();
    let refused = fails(&[coco.path(), "--difficult", "keep"], 2);
    assert!(refused.contains("--difficult: only Pascal VOC"), "{refused}");
    for share in ["0", "1", "x", "120%"] {
        assert!(fails(&[text(&set), "-o", text(&out), "--val", share], 2).contains("10%"));
    }
    // `--val` is rejected for a data set that has splits.
    fs::create_dir_all(set.join("ImageSets/Main")).unwrap();
    fs::write(set.join("ImageSets/Main/train.txt"), "a\nb\n").unwrap();
    fs::write(set.join("ImageSets/Main/dog_train.txt"), "a 1\nb -1\n").unwrap();
    assert!(
        fails(&[text(&set), "-o", text(&out), "--val", "10%"], 2).contains("splits of its own")
    );
    let lists = ok(&[text(&set), "-o", text(&dir.path().join("lists"))]);
    assert!(lists.contains("train: 2 images") && !lists.contains("dog_train"), "{lists}");
    fs::write(set.join("ImageSets/Main/train.txt"), "a\n\n../b\n").unwrap();
    let problem = fails(&[text(&set), "-o", text(&out)], 3);
    assert!(problem.contains("train.txt: line 3"), "{problem}");
}

#[test]
fn lists_of_voc_may_have_the_names_or_paths_of_images() {
    let dir = tempfile::tempdir().unwrap();
    let (set, out) = (dir.path().join("voc"), dir.path().join("out"));
    voc(&set);
    fs::create_dir_all(set.join("ImageSets/Main")).unwrap();
    let list = |name: &str, lines: &str| fs::write(set.join("ImageSets/Main").join(name), lines);
    list("train.txt", "a.png\nVOC\\JPEGImages\\b.png\n").unwrap();
    list("val.txt", "VOC2007/JPEGImages/c\n").unwrap();
    list("test.txt", "x\ny\n").unwrap();
    let said = notes(&[text(&set), "-o", text(&out)]);
    assert!(said.contains("`test` is left out"), "{said}");
    assert_eq!((boxes(&out, "train").len(), boxes(&out, "val").len()), (2, 1));
    list("val.txt", "c\nb\n").unwrap();
    let said = notes(&[text(&set), "-o", text(&dir.path().join("shared"))]);
    assert!(said.contains("1 images are in both `train` and `val`"), "{said}");
    list("val.txt", "c\n\nc\n").unwrap();
    let problem = fails(&[text(&set), "-o", text(&dir.path().join("twice"))], 3);
    assert!(problem.contains("val.txt: line 3: `c` is in the list already"), "{problem}");
    // A mistake in a split that is not selected does not matter.
    list("val.txt", "c\nz\n").unwrap();
    ok(&[text(&set), "-o", text(&dir.path().join("one")), "--split", "train"]);
    assert!(fails(&[text(&set), "-o", text(&out)], 3).contains("val.txt: line 2"));
    for name in ["train.txt", "val.txt"] {
        list(name, "x.jpg\n").unwrap();
    }
    let problem = fails(&[text(&set), "-o", text(&out)], 3);
    assert!(problem.contains("line 1") && problem.contains(".xml"), "{problem}");
    let moved = set.join("pictures");
    fs::rename(set.join("JPEGImages"), &moved).unwrap();
    let problem = fails(&[text(&set), "-o", text(&out)], 2);
    assert!(problem.contains("no folder of images, expected `JPEGImages`"), "{problem}");
    fs::rename(&moved, set.join("JPEGImages")).unwrap();
    // The split of annotation files next to the folders of the splits is unknown.
    let flat = dir.path().join("flat");
    for folder in ["", "extra"] {
        fs::create_dir_all(flat.join(folder)).unwrap();
        for file in ["JPEGImages/a.png", "Annotations/a.xml"] {
            let name = Path::new(file).file_name().unwrap();
            fs::copy(set.join(file), flat.join(folder).join(name)).unwrap();
        }
    }
    let problem = fails(&[text(&flat), "-o", text(&out)], 2);
    assert!(problem.contains("`extra`") && problem.contains("hint:"), "{problem}");
}

/// A YOLO data set of four images, two of them with a label file, and the given `data.yaml`.
fn yolo(dir: &Path, yaml: &str) {
    for folder in ["train/images", "train/labels"] {
        fs::create_dir_all(dir.join(folder)).unwrap();
    }
    let picture = image::RgbImage::from_pixel(20, 10, image::Rgb([9, 90, 200]));
    for name in ["a.png", "b.bmp", "c.tiff", "d.webp"] {
        picture.save(dir.join("train/images").join(name)).unwrap();
    }
    fs::write(dir.join("train/labels/a.txt"), "1 0.5 0.5 0.5 0.5\n").unwrap();
    fs::write(dir.join("train/labels/b.txt"), "").unwrap();
    fs::write(dir.join("data.yaml"), yaml).unwrap();
}

#[test]
fn yolo_exports_of_other_places_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let (set, out) = (dir.path().join("yolo"), dir.path().join("out"));
    yolo(&set, "train: ../train/images\nval: ../train/images\ntest: ../no\nnames: [cat, dog]\n");
    let said = notes(&[text(&set), "-o", text(&out)]);
    assert!(said.contains("2 images have no label file"), "{said}");
    assert!(said.contains("is read as train/images"), "{said}");
    let found = boxes(&out, "train");
    assert_eq!(found["a"], [("dog".to_owned(), [5.0, 2.5, 10.0, 5.0], false)]);
    assert!(found["b"].is_empty() && found.len() == 4);
    for (name, content, word) in [
        ("train/labels/a.txt", "2 0.5 0.5 0.5 0.5", "line 1: expected a class from 0 to 1"),
        ("train/labels/a.txt", "1 0.5", "class cx cy w h"),
        ("train/images/a.png", "no picture", "--bad-images skip"),
        ("data.yaml", "train: /etc\nnames: [cat, dog]", "inside the set"),
        ("data.yaml", "train: train/images", "names"),
    ] {
        let before = fs::read(set.join(name)).unwrap();
        fs::write(set.join(name), content).unwrap();
        let problem = fails(&[text(&set), "-o", text(&out)], 3);
        assert!(problem.contains(word), "{problem}");
        fs::write(set.join(name), before).unwrap();
    }
    // Absolute paths inside the data set and unreadable YAML files of other tools are accepted.
    // With other class names, `--resume` packs again.
    let images = fs::canonicalize(set.join("train/images")).unwrap();
    fs::write(set.join("list.txt"), format!("{}\n", text(&images.join("a.png")))).unwrap();
    fs::write(set.join("._x.yaml"), [0xff, 0xfe]).unwrap();
    symlink("nowhere", set.join("x.yaml")).unwrap();
    let yaml = format!("train: {}\nval: list.txt\nnames: [cat, dog]\n", text(&images));
    fs::write(set.join("data.yaml"), yaml.as_bytes()).unwrap();
    let again = dir.path().join("again");
    ok(&[text(&set), "-o", text(&again)]);
    assert_eq!((boxes(&again, "train").len(), boxes(&again, "val").len()), (4, 1));
    fs::write(set.join("data.yaml"), yaml.replace("[cat, dog]", "[dog, cat]")).unwrap();
    ok(&[text(&set), "-o", text(&again), "--resume"]);
    assert_eq!(boxes(&again, "train")["a"][0].0, "cat");
    // A test set without labels.
    fs::create_dir_all(set.join("test/images")).unwrap();
    fs::copy(set.join("train/images/a.png"), set.join("test/images/t.png")).unwrap();
    fs::write(set.join("data.yaml"), format!("{yaml}test: test/images\n")).unwrap();
    let said = notes(&[text(&set), "-o", text(&dir.path().join("with-test"))]);
    assert!(said.contains("`test` is left out"), "{said}");
    let problem = fails(&[text(&set), "-o", text(&out), "--split", "test"], 3);
    assert!(problem.contains("has a label file"), "{problem}");
    // Labels are never read through a link that leaves their folder.
    fs::write(dir.path().join("secret"), "1 0.5 0.5 0.5 0.5").unwrap();
    symlink(dir.path().join("secret"), set.join("train/labels/c.txt")).unwrap();
    assert!(fails(&[text(&set), "-o", text(&out)], 3).contains("outside"));
    assert!(notes(&[text(&set), "-o", text(&out), "--allow-outside"]).contains("1 images have no"));
}

#[test]
fn roboflow_and_single_coco_files_are_read() {
    let set = whole_pixels();
    let expected = boxes(&set.file("shards"), "val2017");
    let flow = set.file("flow");
    fs::create_dir_all(flow.join("valid")).unwrap();
    let mut v: Value =
        serde_json::from_slice(&fs::read(set.file("annotations/instances_val2017.json")).unwrap())
            .unwrap();
    let project = serde_json::json!({"id": 0, "name": "project", "supercategory": "none"});
    v["categories"].as_array_mut().unwrap().insert(0, project);
    fs::write(flow.join("valid/_annotations.coco.json"), v.to_string()).unwrap();
    for entry in fs::read_dir(set.file("val2017")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), flow.join("valid").join(entry.file_name())).unwrap();
    }
    let said = notes(&[text(&flow)]);
    assert!(said.contains("category 0 `project`"), "{said}");
    assert_eq!(boxes(&flow.join("shards"), "valid"), expected);

    let (json, images) = (flow.join("valid/_annotations.coco.json"), flow.join("valid"));
    let out = set.file("one");
    let args = ["--annotations", text(&json), "--images", text(&images), "-o", text(&out)];
    ok(&[&args[..], &["--split", "mine"]].concat());
    assert_eq!(boxes(&out, "mine"), expected);
    ok(&[&args[..], &["--val", "30%"]].concat());
    assert_eq!(boxes(&out, "train").len() + boxes(&out, "val").len(), expected.len());
    assert!(fails(&args[..4], 2).contains("--out"));
}

#[test]
fn ambiguous_and_unknown_folders_are_refused_with_what_was_found() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("x\u{1b}.bin"), "").unwrap();
    let problem = fails(&[text(dir.path())], 2);
    assert!(problem.contains("x\\u{1b}.bin") && problem.contains("Pascal VOC"), "{problem}");
    voc(dir.path());
    yolo(dir.path(), "train: train/images\nnames: [a, b]\n");
    let problem = fails(&[text(dir.path())], 2);
    for word in ["Annotations/*.xml", "data.yaml", "--format"] {
        assert!(problem.contains(word), "{problem}");
    }
    let out = dir.path().join("out");
    ok(&[text(dir.path()), "--format", "yolo", "-o", text(&out)]);
    assert!(fails(&[text(dir.path()), "--format", "coco"], 2).contains("annotations"));
}

#[test]
fn names_that_differ_only_in_case_stay_apart() {
    let set = Set::new();
    let picture = |n: usize| set.file(&format!("train2017/{n:012}.jpg"));
    fs::rename(picture(1), set.file("train2017/dog.jpg")).unwrap();
    fs::rename(picture(2), set.file("train2017/DOG.jpg")).unwrap();
    set.edit(|v| {
        v["images"][0]["file_name"] = "dog.jpg".into();
        v["images"][1]["file_name"] = "DOG.jpg".into();
    });
    let shards = set.file("shards");
    ok(&[set.path(), "--split", "train2017"]);
    let packed = boxes(&shards, "train2017");
    assert!(packed["dog"] != packed["DOG"], "{packed:?}");
    // On case-insensitive file systems, the second file would replace the first.
    for format in ["coco", "voc", "yolo"] {
        let form = set.file(format);
        let said = notes(&["export", text(&shards), text(&form), "--format", format]);
        assert!(said.contains(": 1 images had the name"), "{said}");
        let found = walk(&form);
        let lower: BTreeSet<String> = found.iter().map(|n| n.to_lowercase()).collect();
        assert_eq!(lower.len(), found.len(), "{found:?}");
        // Both images, and both annotation files in formats with one per image.
        let files = lower.iter().filter(|n| n.contains("/dog")).count();
        assert_eq!(files, if format == "coco" { 2 } else { 4 }, "{found:?}");
    }
}

/// Paths of all files below a folder.
fn walk(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    entries.flat_map(|p| if p.is_dir() { walk(&p) } else { vec![text(&p).to_owned()] }).collect()
}

#[test]
fn line_breaks_and_escapes_in_names_are_packed_but_not_printed() {
    let dir = tempfile::tempdir().unwrap();
    let (set, out) = (dir.path().join("voc"), dir.path().join("out"));
    voc(&set);
    let odd = "a\nb\u{1b}[31m";
    for (folder, extension) in [("Annotations", "xml"), ("JPEGImages", "png")] {
        let file = |stem: &str| set.join(folder).join(format!("{stem}.{extension}"));
        fs::rename(file("a"), file(odd)).unwrap();
    }
    ok(&[text(&set), "-o", text(&out), "--val", "0.35"]);
    let all: Boxes = boxes(&out, "train").into_iter().chain(boxes(&out, "val")).collect();
    assert_eq!(all[odd].len(), 1);
    // VOC lists have one name per line. The error shows the name without its control characters.
    let problem = fails(&["export", text(&out), text(&dir.path().join("x")), "--format", "voc"], 3);
    assert!(problem.contains("line break") && !problem.contains('\u{1b}'), "{problem:?}");
    assert!(problem.trim_end().lines().all(|l| !l.starts_with('b')), "{problem:?}");
}

#[test]
fn empty_picture_files_are_errors_or_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let (set, out) = (dir.path().join("voc"), dir.path().join("out"));
    voc(&set);
    fs::write(set.join("JPEGImages/c.png"), "").unwrap();
    let args = [text(&set), "-o", text(&out), "--val", "0.35"];
    let refused = pack(&args);
    let problem = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(3), "{problem}");
    assert!(problem.contains("c.png") && problem.contains("found an empty file"), "{problem}");
    let said = notes(&[&args[..], &["--bad-images", "skip"]].concat());
    assert!(said.contains("c.png"), "{said}");
    assert_eq!(boxes(&out, "train").len() + boxes(&out, "val").len(), 2);
}

/// The sizes of YOLO's images are read from the files, where `skip` must not leave out more than
/// unusable images.
#[test]
fn links_out_of_a_yolo_set_are_errors_also_with_skip() {
    let dir = tempfile::tempdir().unwrap();
    let set = dir.path().join("yolo");
    yolo(&set, "train: train/images\nval: train/images\nnames: [cat, dog]\n");
    fs::rename(set.join("train/images/a.png"), dir.path().join("a.png")).unwrap();
    symlink(dir.path().join("a.png"), set.join("train/images/a.png")).unwrap();
    for more in [&[][..], &["--bad-images", "skip"]] {
        let problem = fails(&[&[text(&set)], more].concat(), 3);
        assert!(problem.contains("a.png") && problem.contains("--allow-outside"), "{problem}");
    }
    ok(&[text(&set), "--allow-outside"]);
}
