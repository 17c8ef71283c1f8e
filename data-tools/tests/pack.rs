//! `dw-pack` as a user meets it: the whole way there and back.

mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::{Set, fails, files, ok, pack};

#[test]
fn two_runs_are_byte_identical_whatever_the_jobs() {
    let set = Set::new();
    let (a, b) = (set.file("a"), set.file("b"));
    ok(&[set.path(), "-o", a.to_str().unwrap(), "--jobs", "1", "--shard-size", "40KiB"]);
    ok(&[set.path(), "-o", b.to_str().unwrap(), "--jobs", "3", "--shard-size", "40KiB"]);
    let (a, b) = (files(&a), files(&b));
    assert!(a.len() > 4, "several shards: {:?}", a.iter().map(|f| &f.0).collect::<Vec<_>>());
    assert!(a == b);
}

#[test]
fn jpeg_bytes_and_boxes_come_back_identical() {
    let set = Set::new();
    let (shards, back) = (set.file("s"), set.file("back"));
    ok(&[set.path(), "-o", shards.to_str().unwrap(), "--pixels", "jpeg"]);
    ok(&["verify", shards.to_str().unwrap()]);
    ok(&["export", shards.to_str().unwrap(), back.to_str().unwrap()]);
    assert_eq!(files(&set.file("train2017")), files(&back.join("train2017")));
    let read = |p: &Path| -> Value {
        serde_json::from_slice(
            &std::fs::read(p.join("annotations/instances_train2017.json")).unwrap(),
        )
        .unwrap()
    };
    let key = |a: &Value| {
        json!([a["id"], a["image_id"], a["category_id"], a["bbox"], a["area"], a["iscrowd"]])
            .to_string()
    };
    let keys = |v: &Value| {
        let mut k: Vec<_> = v["annotations"].as_array().unwrap().iter().map(key).collect();
        k.sort();
        k
    };
    assert_eq!(keys(&read(set.dir.path())), keys(&read(&back)));
}

#[test]
fn info_counts_what_is_there() {
    let set = Set::new();
    let text = ok(&[set.path()]);
    assert!(text.contains("packed into"));
    let info: Value =
        serde_json::from_str(&ok(&["info", set.file("shards").to_str().unwrap(), "--json"]))
            .unwrap();
    let coco: Value = serde_json::from_slice(&std::fs::read(set.json()).unwrap()).unwrap();
    let crowd =
        coco["annotations"].as_array().unwrap().iter().filter(|a| a["iscrowd"] == 1).count();
    let train = &info["splits"]["train2017"];
    assert_eq!(train["images"], 9);
    assert_eq!(train["crowd"], crowd);
    assert_eq!(train["boxes"], coco["annotations"].as_array().unwrap().len() - crowd);
    assert_eq!(info["categories"][1], json!({"id": 3, "name": "square"}));
    assert_eq!((&info["version"], &train["shrunken"]), (&json!(2), &json!(0)));
}

/// Pain 19: every byte is under a checksum; damage is found, named and never decoded.
#[test]
fn every_flipped_byte_is_found() {
    let set = Set::new();
    let shards = set.file("shards");
    ok(&[set.path(), "--split", "val2017"]);
    let path = shards.to_str().unwrap();
    for (name, whole) in files(&shards) {
        let step = (whole.len() / 97).max(1);
        for at in (0..whole.len()).step_by(step).chain([whole.len() - 1]) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            std::fs::write(shards.join(&name), &bytes).unwrap();
            let text = fails(&["verify", path], 3);
            assert!(text.contains(&name), "byte {at} of {name}: {text}");
        }
        for len in [0, 10, whole.len() / 2, whole.len() - 1] {
            std::fs::write(shards.join(&name), &whole[..len]).unwrap();
            fails(&["verify", path], 3);
        }
        std::fs::write(shards.join(&name), &whole).unwrap();
    }
    std::fs::write(shards.join("notes.txt"), "not ours").unwrap();
    ok(&["verify", path]);
}

/// The same in the program: 3,000 single flips anywhere in index and shard.
#[test]
fn every_flip_is_found_wherever_it_is() {
    let set = Set::new();
    ok(&[set.path(), "--split", "val2017"]);
    let shards = set.file("shards");
    let whole = files(&shards);
    let mut state = 5u64;
    for round in 0..3000 {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (name, bytes) = &whole[round % whole.len()];
        let (at, bit) = ((state >> 20) as usize % bytes.len(), (state >> 60) as u32 % 8);
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << bit;
        std::fs::write(shards.join(name), &damaged).unwrap();
        let found = dw_shards::Split::open(&shards, "val2017")
            .map_or(true, |split| !split.verify(|| ()).is_empty());
        assert!(found, "bit {bit} of byte {at} of {name}");
        std::fs::write(shards.join(name), bytes).unwrap();
    }
}

/// Whatever boxes, labels, flags, ids and pixels go in come out: random sets, several codecs.
#[test]
fn what_goes_in_comes_out() {
    let mut state = 11u64;
    let mut random = |n: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    for round in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("annotations")).unwrap();
        std::fs::create_dir_all(dir.path().join("s/deep")).unwrap();
        let categories: Vec<i64> = (0..3).map(|k| k * 1000 + random(900) as i64 - 400).collect();
        let (mut images, mut annotations, mut pictures) = (vec![], vec![], vec![]);
        for i in 0..6i64 {
            let (w, h) = (1 + random(90) as u32, 1 + random(70) as u32);
            let id = i * 7 - 20;
            let name = if i % 2 == 0 { format!("deep/{i}.png") } else { format!("{i}.jpg") };
            let picture = image::RgbImage::from_fn(w, h, |_, _| {
                image::Rgb([random(256) as u8, random(256) as u8, random(256) as u8])
            });
            let path = dir.path().join("s").join(&name);
            if i % 2 == 0 {
                picture.save(&path).unwrap();
            } else {
                let rgb = dw_shards::pixels::Rgb {
                    width: w as usize,
                    height: h as usize,
                    data: picture.into_raw(),
                };
                std::fs::write(&path, dw_shards::pixels::encode_jpeg(&rgb, 85).unwrap()).unwrap();
            }
            pictures.push(dw_shards::pixels::decode_file(&std::fs::read(&path).unwrap()).unwrap());
            images.push(json!({"id": id, "file_name": name, "width": w, "height": h}));
            for _ in 0..random(5) {
                let (x, y) = (random(w as u64) as f64, random(h as u64) as f64);
                let bbox = [x, y, (w as f64 - x) * 0.7, (h as f64 - y) / 3.0];
                let n = annotations.len() as i64;
                annotations.push(json!({"id": n * 3 - 4, "image_id": id, "category_id": categories[random(3) as usize], "bbox": bbox, "area": random(1000) as f64 / 7.0, "iscrowd": random(2)}));
            }
        }
        let text = json!({"images": images, "annotations": annotations, "categories": categories.iter().map(|c| json!({"id": c, "name": format!("c{c}")})).collect::<Vec<_>>()});
        std::fs::write(dir.path().join("annotations/instances_s.json"), text.to_string()).unwrap();
        let codec = if round % 2 == 0 { "zstd" } else { "jpeg" };
        ok(&[dir.path().to_str().unwrap(), "--pixels", codec]);
        let split = dw_shards::Split::open(&dir.path().join("shards"), "s").unwrap();
        assert_eq!(split.len(), 6);
        for (i, picture) in pictures.iter().enumerate() {
            let record = split.record(i).unwrap();
            assert_eq!(
                (record.entry.image_id, &record.annotations.file_name),
                (
                    images[i]["id"].as_i64().unwrap(),
                    &images[i]["file_name"].as_str().unwrap().to_owned()
                )
            );
            assert!(record.decode().unwrap() == *picture, "pixels of image {i}, {codec}");
            let expected: Vec<&Value> =
                annotations.iter().filter(|a| a["image_id"] == images[i]["id"]).collect();
            assert_eq!(record.annotations.boxes.len(), expected.len());
            for (b, a) in record.annotations.boxes.iter().zip(expected) {
                let category = split.categories()[b.label as usize].id;
                let found = json!({"id": b.id, "image_id": images[i]["id"], "category_id": category, "bbox": b.bbox, "area": b.area, "iscrowd": u64::from(b.crowd)});
                assert_eq!(found, *a);
            }
        }
    }
}

#[test]
fn damage_names_shard_record_and_offset() {
    let set = Set::new();
    ok(&[set.path(), "--split", "train2017"]);
    let (name, mut bytes) =
        files(&set.file("shards")).into_iter().find(|f| f.0.ends_with(".dwshard")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(set.file("shards").join(&name), bytes).unwrap();
    let text = fails(&["verify", set.file("shards").to_str().unwrap()], 3);
    assert!(
        text.contains(&name)
            && text.contains("record")
            && text.contains("at offset")
            && text.contains("damaged"),
        "{text}"
    );
}

#[test]
fn png_grey_and_max_side() {
    let set = Set::new();
    let grey = image::GrayImage::from_fn(120, 80, |x, y| image::Luma([(x + y) as u8]));
    grey.save(set.file("train2017/grey.png")).unwrap();
    set.edit(|v| {
        v["images"].as_array_mut().unwrap().push(json!({"id": 77, "file_name": "grey.png", "width": 120, "height": 80}));
        let next = json!({"id": 7777, "image_id": 77, "category_id": 1, "bbox": [60, 40, 30, 20], "area": 600, "iscrowd": 0});
        v["annotations"].as_array_mut().unwrap().push(next);
    });
    let out = set.file("small");
    ok(&[set.path(), "-o", out.to_str().unwrap(), "--max-side", "60", "--split", "train2017"]);
    let split = dw_shards::Split::open(&out, "train2017").unwrap();
    let last = split.record(split.len() - 1).unwrap();
    let rgb = last.decode().unwrap();
    assert_eq!((rgb.width, rgb.height), (60, 40));
    assert!(rgb.data.chunks_exact(3).all(|p| p[0] == p[1] && p[1] == p[2]));
    assert_eq!(last.annotations.boxes[0].bbox, [60.0, 40.0, 30.0, 20.0], "pixels of the original");
    assert_eq!(last.entry.original(), (120, 80));
}

#[test]
fn synth_is_repeatable_and_varied() {
    let smallest = tempfile::tempdir().unwrap();
    ok(&[
        "synth",
        smallest.path().to_str().unwrap(),
        "--images",
        "60",
        "--val",
        "1",
        "--side",
        "64",
        "--classes",
        "1",
    ]);
    let (a, b) = (Set::new(), Set::new());
    assert_eq!(files(&a.file("train2017")), files(&b.file("train2017")));
    assert_eq!(std::fs::read(a.json()).unwrap(), std::fs::read(b.json()).unwrap());
    let dir = tempfile::tempdir().unwrap();
    ok(&[
        "synth",
        dir.path().to_str().unwrap(),
        "--images",
        "150",
        "--val",
        "0",
        "--classes",
        "20",
    ]);
    let v: Value = serde_json::from_slice(
        &std::fs::read(dir.path().join("annotations/instances_train2017.json")).unwrap(),
    )
    .unwrap();
    let boxes = v["annotations"].as_array().unwrap();
    let area = |b: &Value| b["bbox"][2].as_f64().unwrap() * b["bbox"][3].as_f64().unwrap();
    let of = |low: f64, high: f64| {
        boxes.iter().filter(|b| b["iscrowd"] == 0 && (low..high).contains(&area(b))).count()
    };
    assert!(
        of(0.0, 1024.0) > 50 && of(1024.0, 9216.0) > 50 && of(9216.0, 1e9) > 30,
        "all three COCO sizes"
    );
    assert!(boxes.iter().any(|b| b["iscrowd"] == 1), "crowds");
    let with: std::collections::HashSet<_> = boxes.iter().map(|b| b["image_id"].as_i64()).collect();
    assert!(with.len() < 150, "empty images");
    assert_eq!(v["categories"].as_array().unwrap().len(), 20);
    // Pictures that are there already are never written over.
    std::fs::remove_dir_all(dir.path().join("annotations")).unwrap();
    let text = fails(&["synth", dir.path().to_str().unwrap(), "--images", "1"], 2);
    assert!(text.contains("train2017 exists already"), "{text}");
}

#[test]
fn help_has_examples_and_version_a_revision() {
    assert!(ok(&["--help"]).contains("dw-pack coco/"));
    assert!(ok(&["--version"]).starts_with("dw-pack 0."));
    assert_eq!(pack(&[]).status.code(), Some(2));
    assert!(fails_usage(&["x", "--shard-size", "many"]).contains("256MiB"));
}

fn fails_usage(args: &[&str]) -> String {
    let out = pack(args);
    assert_eq!(out.status.code(), Some(2));
    String::from_utf8_lossy(&out.stderr).into_owned()
}
