//! `dw-pack export`.

mod support;

use std::path::{Path, PathBuf};

use dw_shards::{export, pixels};
use serde_json::{Value, json};
use support::test_pack::{HEIGHT, TestPack, WIDTH, pattern};
use support::{Set, fails, files, ok, pack, words};

/// The exported annotation file of a split.
fn annotations(dir: &Path, split: &str) -> Value {
    let file = dir.join(format!("annotations/instances_{split}.json"));
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// File names that collide on export.
#[test]
fn images_with_the_same_name_are_renamed() {
    let names =
        ["a.jpg", "a.png", "./a.jpg", "a.png", "a_2.png", "x//b.jpg", "x/b.jpg", "x/./b.png"];
    let mut pack = TestPack::new(&names);
    for (n, image) in pack.images.iter_mut().enumerate() {
        // The images differ, so that a lost or exchanged image is found.
        let mut rgb = pattern(WIDTH, HEIGHT);
        rgb.data[0] = n as u8;
        (image.layout, image.pixels) = pixels::encode_zstd(b"", &rgb, 1).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let shards = dir.path().join("pack");
    pack.write(&shards);
    let mut first = None;
    for round in 0..4 {
        let to = dir.path().join(format!("to{round}"));
        let out = pack_stderr(&["export", shards.to_str().unwrap(), to.to_str().unwrap()]);
        assert!(out.contains("5 images"), "{out}");
        let coco = annotations(&to, "val");
        let found: Vec<&str> = coco["images"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| i["file_name"].as_str().unwrap())
            .collect();
        assert_eq!(
            found,
            [
                "a.png",
                "a_2_2.png",
                "a_3.png",
                "a_4.png",
                "a_2.png",
                "x/b.png",
                "x/b_7.png",
                "x/b_8.png"
            ]
        );
        for (n, name) in found.iter().enumerate() {
            let bytes = std::fs::read(to.join("val").join(name)).unwrap();
            assert_eq!(pixels::decode_file(&bytes).unwrap().data[0], n as u8, "{name}");
        }
        let all = (files(&to.join("val/x")), coco);
        assert!(first.get_or_insert(all.clone()) == &all, "round {round}");
    }
}

/// Runs a command that must succeed; returns its standard error.
fn pack_stderr(args: &[&str]) -> String {
    let out = pack(args);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{text}");
    text
}

#[test]
fn the_output_folder_must_be_empty() {
    let set = Set::new();
    ok(&[set.path(), "--split", "val2017"]);
    let shards = set.file("shards");
    let to = set.file("to");
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::create_dir(&to).unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), to.join("val2017")).unwrap();
    let args = ["export", shards.to_str().unwrap(), to.to_str().unwrap()];
    let text = fails(&args, 2);
    assert!(text.contains("hint: "), "{text}");
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    // The library function does not follow the link either.
    let split = dw_shards::Split::open(&shards, "val2017").unwrap();
    let mut target = export::Target::new(&to, export::Format::Coco).unwrap();
    target.export_split(&split, || ()).unwrap();
    assert!(target.finish().is_err());
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    std::fs::remove_file(to.join("val2017")).unwrap();
    ok(&args);
    assert_eq!(std::fs::read_dir(to.join("val2017")).unwrap().count(), 3);
}

/// The entry with this id.
fn by_id(list: &Value, id: i64) -> &Value {
    list.as_array().unwrap().iter().find(|a| a["id"] == id).unwrap()
}

/// Packs `train2017` with `--max-side 48`; returns the output folder.
fn pack_resized(set: &Set) -> PathBuf {
    let out = set.file("small");
    ok(&[&[set.path(), "-o", out.to_str().unwrap()], &*words("--max-side 48 --split train2017")]
        .concat());
    out
}

#[test]
fn boxes_of_resized_images_are_stored_in_pixels_of_the_original() {
    let set = Set::new();
    let folder = pack_resized(&set);
    let out = folder.to_str().unwrap();
    ok(&["verify", out]);
    let original: Value = serde_json::from_slice(&std::fs::read(set.json()).unwrap()).unwrap();
    let split = dw_shards::Split::open(&folder, "train2017").unwrap();
    for i in 0..split.len() {
        let record = split.record(i).unwrap();
        let e = record.entry;
        let image = by_id(&original["images"], e.image_id);
        assert_eq!(
            json!([e.original().0, e.original().1]),
            json!([image["width"], image["height"]])
        );
        let rgb = record.decode().unwrap();
        assert_eq!((rgb.width as u32, rgb.height as u32), (e.width, e.height));
        assert_eq!(e.width.max(e.height), 48);
        for b in &record.annotations.boxes {
            let a = by_id(&original["annotations"], b.id);
            assert_eq!(json!([b.bbox, b.area]), json!([a["bbox"], a["area"]]));
        }
    }
    let info: Value = serde_json::from_str(&ok(&["info", out, "--json"])).unwrap();
    assert_eq!(info["splits"]["train2017"]["shrunken"], 9);
    assert!(ok(&["info", out]).contains("at most 48 pixels"));
}

#[test]
fn boxes_of_resized_images_are_exported_in_pixels_of_the_exported_image() {
    let set = Set::new();
    let folder = pack_resized(&set);
    let to = set.file("to");
    let messages = pack_stderr(&["export", folder.to_str().unwrap(), to.to_str().unwrap()]);
    assert!(messages.contains("9 images"), "{messages}");
    let original: Value = serde_json::from_slice(&std::fs::read(set.json()).unwrap()).unwrap();
    let written = annotations(&to, "train2017");
    let count = |v: &Value| v["annotations"].as_array().unwrap().len();
    assert!(count(&written) > 9 && count(&written) == count(&original));
    let split = dw_shards::Split::open(&folder, "train2017").unwrap();
    for e in split.entries() {
        let image = by_id(&written["images"], e.image_id);
        assert_eq!(json!([e.width, e.height]), json!([image["width"], image["height"]]));
        let (sx, sy) = (
            f64::from(e.width) / f64::from(e.original().0),
            f64::from(e.height) / f64::from(e.original().1),
        );
        let of_image = |a: &&Value| a["image_id"] == e.image_id;
        for a in written["annotations"].as_array().unwrap().iter().filter(of_image) {
            let o = by_id(&original["annotations"], a["id"].as_i64().unwrap());
            let near = |a: &Value, o: &Value, s: f64| {
                (a.as_f64().unwrap() - o.as_f64().unwrap() * s).abs() < 1e-6
            };
            for (k, s) in [(0, sx), (1, sy), (2, sx), (3, sy)] {
                assert!(near(&a["bbox"][k], &o["bbox"][k], s), "{a} {o}");
            }
            assert!(near(&a["area"], &o["area"], sx * sy), "{a} {o}");
        }
    }
}

/// A YOLO data set has one list of classes, and one list of folders for each kind of split.
#[test]
fn yolo_sets_have_the_same_classes_in_all_splits() {
    let dir = tempfile::tempdir().unwrap();
    let shards = dir.path().join("pack");
    let mut pack = TestPack::one();
    pack.write(&shards);
    (pack.stem, pack.meta.split) = ("val_extra".into(), "val_extra".into());
    pack.write(&shards);
    let export = |name: &str| {
        let to = dir.path().join(name);
        let args = ["export", shards.to_str().unwrap(), to.to_str().unwrap(), "--format", "yolo"];
        (args.map(str::to_owned), to)
    };
    let (args, to) = export("a");
    ok(&args.each_ref().map(String::as_str));
    let yaml = std::fs::read_to_string(to.join("data.yaml")).unwrap();
    assert!(yaml.contains(r#"val: ["images/val","images/val_extra"]"#), "{yaml}");
    pack.meta.categories.remove(0);
    pack.images[0].annotations.boxes[0].label = 0;
    pack.write(&shards);
    let (args, _) = export("b");
    let text = fails(&args.each_ref().map(String::as_str), 3);
    assert!(text.contains("`val`") && text.contains("`val_extra`"), "{text}");
    let info = pack_stderr(&["info", shards.to_str().unwrap()]);
    assert!(info.contains("categories of `val_extra`"), "{info}");
}

/// Half of an export is not left behind, where it would be packed like a whole data set.
#[test]
fn a_failed_export_leaves_an_empty_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (shards, to) = (dir.path().join("pack"), dir.path().join("to"));
    let mut pack = TestPack::one();
    for (n, category) in (1..).zip(&mut pack.meta.categories) {
        category.name = format!("bell {n}\u{7}");
    }
    pack.write(&shards);
    let args = ["export", shards.to_str().unwrap(), to.to_str().unwrap(), "--format", "voc"];
    let text = fails(&args, 3);
    assert!(text.contains("XML cannot hold"), "{text}");
    assert_eq!(std::fs::read_dir(&to).unwrap().count(), 0);
    // That of a killed one is removed.
    std::fs::create_dir(to.join(".writing")).unwrap();
    ok(&["export", shards.to_str().unwrap(), to.to_str().unwrap()]);
    let mut found: Vec<_> = std::fs::read_dir(&to).unwrap().flatten().collect();
    found.retain(|f| f.file_name() != "annotations");
    assert_eq!(found.len(), 1, "{found:?}");
}

/// VOC and YOLO identify categories by their names.
#[test]
fn categories_of_equal_names_are_not_merged_on_export() {
    let dir = tempfile::tempdir().unwrap();
    let shards = dir.path().join("pack");
    let mut pack = TestPack::one();
    pack.meta.categories[1].name = pack.meta.categories[0].name.clone();
    pack.write(&shards);
    for format in ["voc", "yolo"] {
        let to = dir.path().join(format);
        let args = ["export", shards.to_str().unwrap(), to.to_str().unwrap(), "--format", format];
        let text = fails(&args, 3);
        assert!(text.contains("`class 3` for the ids 3 and 5"), "{text}");
        assert!(!to.exists());
    }
    ok(&["export", shards.to_str().unwrap(), dir.path().join("coco").to_str().unwrap()]);
}
