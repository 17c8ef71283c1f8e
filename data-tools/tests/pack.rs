//! `dw-pack`: packing, verifying, `info` and `synth`.

mod support;

use std::path::Path;

use dw_shards::Split;
use dw_shards::pixels::{self, Rgb};
use serde_json::{Value, json};
use support::{Set, fails, files, ok, pack, words};

#[test]
fn the_number_of_threads_does_not_change_the_output() {
    let set = Set::new();
    let (a, b) = (set.file("a"), set.file("b"));
    ok(&[set.path(), "-o", a.to_str().unwrap(), "--jobs", "1", "--shard-size", "40KiB"]);
    ok(&[set.path(), "-o", b.to_str().unwrap(), "--jobs", "3", "--shard-size", "40KiB"]);
    let (a, b) = (files(&a), files(&b));
    assert!(a.len() > 4, "several shards: {:?}", a.iter().map(|f| &f.0).collect::<Vec<_>>());
    assert!(a == b);
}

#[test]
fn jpeg_files_and_boxes_are_exported_unchanged() {
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
fn info_prints_counts() {
    let set = Set::new();
    let text = ok(&[set.path()]);
    assert!(text.contains("train2017: 9 images"), "{text}");
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

/// Every byte of every file is covered by a checksum.
#[test]
fn verify_finds_flipped_bytes_and_truncated_files() {
    let set = Set::new();
    let shards = set.file("shards");
    ok(&[set.path(), "--split", "val2017"]);
    let path = shards.to_str().unwrap();
    for (name, original) in files(&shards) {
        let step = (original.len() / 97).max(1);
        for at in (0..original.len()).step_by(step).chain([original.len() - 1]) {
            let mut bytes = original.clone();
            bytes[at] ^= 0x10;
            std::fs::write(shards.join(&name), &bytes).unwrap();
            let text = fails(&["verify", path], 3);
            assert!(text.contains(&name), "byte {at} of {name}: {text}");
        }
        for len in [0, 10, original.len() / 2, original.len() - 1] {
            std::fs::write(shards.join(&name), &original[..len]).unwrap();
            fails(&["verify", path], 3);
        }
        std::fs::write(shards.join(&name), &original).unwrap();
    }
    std::fs::write(shards.join("notes.txt"), "another file").unwrap();
    ok(&["verify", path]);
}

/// 3,000 random single-bit errors in index and shard.
#[test]
fn verify_finds_flipped_bits() {
    let set = Set::new();
    ok(&[set.path(), "--split", "val2017"]);
    let shards = set.file("shards");
    let original = files(&shards);
    let mut random = Random(5);
    for round in 0..3000 {
        let (name, bytes) = &original[round % original.len()];
        let (at, bit) = (random.below(bytes.len() as u64) as usize, random.below(8) as u32);
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << bit;
        std::fs::write(shards.join(name), &damaged).unwrap();
        let found =
            Split::open(&shards, "val2017").map_or(true, |split| !split.verify(|| ()).is_empty());
        assert!(found, "bit {bit} of byte {at} of {name}");
        std::fs::write(shards.join(name), bytes).unwrap();
    }
}

/// A linear congruential generator.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// A COCO folder with the split `s` of six random images with random boxes.
struct RandomSet {
    dir: tempfile::TempDir,
    categories: Vec<i64>,
    images: Vec<Value>,
    annotations: Vec<Value>,
    decoded: Vec<Rgb>,
}

impl RandomSet {
    fn new(random: &mut Random) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("annotations")).unwrap();
        std::fs::create_dir_all(dir.path().join("s/deep")).unwrap();
        let categories = (0..3).map(|k| k * 1000 + random.below(900) as i64 - 400).collect();
        let (images, annotations, decoded) = (vec![], vec![], vec![]);
        let mut set = Self { dir, categories, images, annotations, decoded };
        for i in 0..6 {
            set.add_image(i, random);
        }
        let category = |c: &i64| json!({"id": c, "name": format!("c{c}")});
        let text = json!({"images": set.images, "annotations": set.annotations,
                          "categories": set.categories.iter().map(category).collect::<Vec<_>>()});
        let file = set.dir.path().join("annotations/instances_s.json");
        std::fs::write(file, text.to_string()).unwrap();
        set
    }

    /// Adds a PNG (even `i`) or a JPEG with up to four boxes.
    fn add_image(&mut self, i: i64, random: &mut Random) {
        let (w, h) = (1 + random.below(90) as u32, 1 + random.below(70) as u32);
        let id = i * 7 - 20;
        let name = if i % 2 == 0 { format!("deep/{i}.png") } else { format!("{i}.jpg") };
        let data = (0..w * h * 3).map(|_| random.below(256) as u8).collect();
        let path = self.dir.path().join("s").join(&name);
        if i % 2 == 0 {
            image::RgbImage::from_raw(w, h, data).unwrap().save(&path).unwrap();
        } else {
            let rgb = Rgb { width: w as usize, height: h as usize, data };
            std::fs::write(&path, pixels::encode_jpeg(&rgb, 85).unwrap()).unwrap();
        }
        self.decoded.push(pixels::decode_file(&std::fs::read(&path).unwrap()).unwrap());
        self.images.push(json!({"id": id, "file_name": name, "width": w, "height": h}));
        for _ in 0..random.below(5) {
            let (x, y) = (random.below(w as u64) as f64, random.below(h as u64) as f64);
            let bbox = [x, y, (w as f64 - x) * 0.7, (h as f64 - y) / 3.0];
            let n = self.annotations.len() as i64;
            let category = self.categories[random.below(3) as usize];
            self.annotations.push(json!({"id": n * 3 - 4, "image_id": id, "category_id": category,
                                         "bbox": bbox, "area": random.below(1000) as f64 / 7.0,
                                         "iscrowd": random.below(2)}));
        }
    }

    /// Checks every record of the packed split against image file and annotations.
    fn assert_equals(&self, split: &Split) {
        assert_eq!(split.len(), 6);
        for (i, (image, decoded)) in self.images.iter().zip(&self.decoded).enumerate() {
            let record = split.record(i).unwrap();
            assert_eq!(image["id"], record.entry.image_id);
            assert_eq!(image["file_name"], record.annotations.file_name);
            assert!(record.decode().unwrap() == *decoded, "pixels of image {i}");
            let found: Vec<Value> = record
                .annotations
                .boxes
                .iter()
                .map(|b| {
                    let category = split.categories()[b.label as usize].id;
                    json!({"id": b.id, "image_id": image["id"], "category_id": category,
                       "bbox": b.bbox, "area": b.area, "iscrowd": u64::from(b.crowd)})
                })
                .collect();
            let of_image = |a: &&Value| a["image_id"] == image["id"];
            assert!(found.iter().eq(self.annotations.iter().filter(of_image)), "image {i}");
        }
    }
}

#[test]
fn boxes_labels_ids_and_pixels_round_trip() {
    let mut random = Random(11);
    for round in 0..12 {
        let set = RandomSet::new(&mut random);
        let codec = if round % 2 == 0 { "zstd" } else { "jpeg" };
        ok(&[set.dir.path().to_str().unwrap(), "--pixels", codec]);
        set.assert_equals(&Split::open(&set.dir.path().join("shards"), "s").unwrap());
    }
}

#[test]
fn errors_name_shard_record_and_offset() {
    let set = Set::new();
    ok(&[set.path(), "--split", "train2017"]);
    let (name, mut bytes) =
        files(&set.file("shards")).into_iter().find(|f| f.0.ends_with(".dwshard")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(set.file("shards").join(&name), bytes).unwrap();
    let text = fails(&["verify", set.file("shards").to_str().unwrap()], 3);
    let located = text.contains(&name) && text.contains("record ") && text.contains("at offset ");
    assert!(located, "{text}");
}

#[test]
fn a_grey_png_is_converted_to_rgb_and_resized() {
    let set = Set::new();
    let grey = image::GrayImage::from_fn(120, 80, |x, y| image::Luma([(x + y) as u8]));
    grey.save(set.file("train2017/grey.png")).unwrap();
    set.edit(|v| {
        let image = json!({"id": 77, "file_name": "grey.png", "width": 120, "height": 80});
        v["images"].as_array_mut().unwrap().push(image);
        let annotation = json!({"id": 7777, "image_id": 77, "category_id": 1,
                                "bbox": [60, 40, 30, 20], "area": 600, "iscrowd": 0});
        v["annotations"].as_array_mut().unwrap().push(annotation);
    });
    let out = set.file("small");
    ok(&[set.path(), "-o", out.to_str().unwrap(), "--max-side", "60", "--split", "train2017"]);
    let split = Split::open(&out, "train2017").unwrap();
    let last = split.record(split.len() - 1).unwrap();
    let rgb = last.decode().unwrap();
    assert_eq!((rgb.width, rgb.height), (60, 40));
    assert!(rgb.data.chunks_exact(3).all(|p| p[0] == p[1] && p[1] == p[2]));
    assert_eq!(last.annotations.boxes[0].bbox, [60.0, 40.0, 30.0, 20.0], "pixels of the original");
    assert_eq!(last.entry.original(), (120, 80));
}

/// Generates a data set in `dir`.
fn synth(dir: &Path, options: &str) {
    ok(&[&["synth", dir.to_str().unwrap()], &*words(options)].concat());
}

#[test]
fn synth_is_reproducible() {
    let (a, b) = (Set::new(), Set::new());
    assert_eq!(files(&a.file("train2017")), files(&b.file("train2017")));
    assert_eq!(std::fs::read(a.json()).unwrap(), std::fs::read(b.json()).unwrap());
}

#[test]
fn synth_draws_all_sizes_crowds_and_empty_images() {
    let smallest = tempfile::tempdir().unwrap();
    synth(smallest.path(), "--images 60 --val 1 --side 64 --classes 1");
    let dir = tempfile::tempdir().unwrap();
    synth(dir.path(), "--images 150 --val 0 --classes 20");
    let file = dir.path().join("annotations/instances_train2017.json");
    let v: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let boxes = v["annotations"].as_array().unwrap();
    let area = |b: &Value| b["bbox"][2].as_f64().unwrap() * b["bbox"][3].as_f64().unwrap();
    let count = |low: f64, high: f64| {
        boxes.iter().filter(|b| b["iscrowd"] == 0 && (low..high).contains(&area(b))).count()
    };
    // COCO's small, medium and large.
    let counts = [count(0.0, 1024.0), count(1024.0, 9216.0), count(9216.0, 1e9)];
    assert!(counts[0] > 50 && counts[1] > 50 && counts[2] > 30, "{counts:?}");
    assert!(boxes.iter().any(|b| b["iscrowd"] == 1));
    let with: std::collections::HashSet<_> = boxes.iter().map(|b| b["image_id"].as_i64()).collect();
    assert!(with.len() < 150, "{} images with boxes", with.len());
    assert_eq!(v["categories"].as_array().unwrap().len(), 20);
    // Existing images are not overwritten.
    std::fs::remove_dir_all(dir.path().join("annotations")).unwrap();
    let text = fails(&["synth", dir.path().to_str().unwrap(), "--images", "1"], 2);
    assert!(text.contains("train2017"), "{text}");
}

#[test]
fn help_version_and_usage_errors() {
    assert!(ok(&["--help"]).contains("dw-pack coco/"));
    assert!(ok(&["--version"]).starts_with("dw-pack 0."));
    assert_eq!(pack(&[]).status.code(), Some(2));
    assert!(fails_usage(&["x", "--shard-size", "many"]).contains("256MiB"));
}

/// Runs a command that clap must reject; returns its standard error.
fn fails_usage(args: &[&str]) -> String {
    let out = pack(args);
    assert_eq!(out.status.code(), Some(2));
    String::from_utf8_lossy(&out.stderr).into_owned()
}
