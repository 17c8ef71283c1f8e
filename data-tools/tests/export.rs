//! `dw-pack export`: into an empty folder, one file an image.

mod support;

use std::path::Path;

use dw_shards::pixels;
use serde_json::{Value, json};
use support::craft::{Crafted, HEIGHT, WIDTH, picture};
use support::{Set, fails, files, ok, pack};

fn annotations(dir: &Path, split: &str) -> Value {
    let file = dir.join(format!("annotations/instances_{split}.json"));
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// Names that become one on export: all images are there, and every run names them alike.
#[test]
fn two_images_never_share_a_file() {
    let names =
        ["a.jpg", "a.png", "./a.jpg", "a.png", "a_2.png", "x//b.jpg", "x/b.jpg", "x/./b.png"];
    let mut pack = Crafted::new(&names);
    for (n, image) in pack.images.iter_mut().enumerate() {
        // Every picture differs, so that a lost one is seen.
        let mut rgb = picture(WIDTH, HEIGHT);
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
        assert!(out.contains("5 images had the name of another"), "{out}");
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

fn pack_stderr(args: &[&str]) -> String {
    let out = pack(args);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{text}");
    text
}

#[test]
fn only_into_an_empty_folder() {
    let set = Set::new();
    ok(&[set.path(), "--split", "val2017"]);
    let shards = set.file("shards");
    let to = set.file("to");
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::create_dir(&to).unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), to.join("val2017")).unwrap();
    let args = ["export", shards.to_str().unwrap(), to.to_str().unwrap()];
    let text = fails(&args, 2);
    assert!(text.contains("holds something already") && text.contains("empty folder"), "{text}");
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    // The library's function, too, makes the folder itself.
    let split = dw_shards::Split::open(&shards, "val2017").unwrap();
    assert!(dw_shards::export::export_split(&split, &to, || ()).is_err());
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    std::fs::remove_file(to.join("val2017")).unwrap();
    ok(&args);
    assert_eq!(std::fs::read_dir(to.join("val2017")).unwrap().count(), 3);
}

/// Boxes are kept in pixels of the original; what is exported belongs to the picture that is
/// written.
#[test]
fn max_side_keeps_original_boxes_and_exports_scaled_ones() {
    let set = Set::new();
    let out = set.file("small");
    let out = out.to_str().unwrap();
    ok(&[set.path(), "-o", out, "--max-side", "48", "--split", "train2017"]);
    ok(&["verify", out]);
    let original: Value = serde_json::from_slice(&std::fs::read(set.json()).unwrap()).unwrap();
    let by_id = |v: &Value, id: i64| {
        let list = v.as_array().unwrap();
        list.iter().find(|a| a["id"] == id).unwrap().clone()
    };
    let split = dw_shards::Split::open(Path::new(out), "train2017").unwrap();
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
    assert!(ok(&["info", out]).contains("9 images stored smaller (longer side at most 48 pixels"));

    let to = set.file("to");
    let said = pack_stderr(&["export", out, to.to_str().unwrap()]);
    assert!(said.contains("boxes and areas are written in pixels of the stored images"), "{said}");
    let written = annotations(&to, "train2017");
    for e in split.entries() {
        let image = by_id(&written["images"], e.image_id);
        assert_eq!(json!([e.width, e.height]), json!([image["width"], image["height"]]));
        let (sx, sy) = (
            f64::from(e.width) / f64::from(e.original().0),
            f64::from(e.height) / f64::from(e.original().1),
        );
        for a in written["annotations"].as_array().unwrap() {
            if a["image_id"] == e.image_id {
                let o = by_id(&original["annotations"], a["id"].as_i64().unwrap());
                let near = |a: &Value, o: &Value, s: f64| {
                    (a.as_f64().unwrap() - o.as_f64().unwrap() * s).abs() < 1e-6
                };
                assert!(near(&a["bbox"][2], &o["bbox"][2], sx), "{a} {o}");
                assert!(near(&a["bbox"][3], &o["bbox"][3], sy), "{a} {o}");
                assert!(near(&a["area"], &o["area"], sx * sy), "{a} {o}");
            }
        }
    }
}
