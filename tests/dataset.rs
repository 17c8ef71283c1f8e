//! Which images of a split are used, and decoding at a fraction of the size.

use std::path::Path;
use std::process::Command;

use dw::data::dataset::Dataset;
use dw_shards::pixels::{self, Rgb};
use serde_json::{Value, json};

/// Packs images of these sizes as split `train2017`, each with what `annotate` gives for its index.
fn pack(dir: &Path, sizes: &[(u32, u32)], annotations: &[Value], codec: &str) {
    let images = dir.join("train2017");
    std::fs::create_dir_all(&images).unwrap();
    std::fs::create_dir_all(dir.join("annotations")).unwrap();
    let mut listed = vec![];
    for (i, &(width, height)) in sizes.iter().enumerate() {
        let data = (0..width * height * 3).map(|n| (n / 7 % 251) as u8).collect();
        let rgb = Rgb { width: width as usize, height: height as usize, data };
        let name = format!("{i}.jpg");
        std::fs::write(images.join(&name), pixels::encode_jpeg(&rgb, 90).unwrap()).unwrap();
        listed.push(json!({"id": i, "file_name": name, "width": width, "height": height}));
    }
    let set = json!({
        "images": listed,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
    });
    std::fs::write(dir.join("annotations/instances_train2017.json"), set.to_string()).unwrap();
    let dw_pack = Path::new(env!("CARGO_BIN_EXE_dw-train")).with_file_name("dw-pack");
    let out = Command::new(dw_pack).arg(dir).args(["--pixels", codec]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// One box on image `image`.
fn annotation(id: u32, image: u32, crowd: bool) -> Value {
    json!({"id": id, "image_id": image, "category_id": 1, "bbox": [1, 1, 20, 20], "area": 400,
           "iscrowd": u8::from(crowd)})
}

#[test]
fn images_without_boxes_and_small_images_are_filtered() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = [(64, 64), (64, 64), (64, 64), (31, 200), (32, 32)];
    let boxes = [(0, false), (2, true), (3, false), (4, false)];
    let boxes = boxes.iter().zip(1..).map(|(&(image, crowd), id)| annotation(id, image, crowd));
    pack(dir.path(), &sizes, &boxes.collect::<Vec<_>>(), "zstd");
    let selected = |limit, filter| {
        Dataset::open(&dir.path().join("shards"), "train2017", limit, filter).unwrap().records
    };
    assert_eq!(selected(0, true), [0, 4]);
    assert_eq!(selected(0, false), [0, 1, 2, 3, 4]);
    // The limit comes first: it selects images of the split, not of the filtered ones.
    assert_eq!(selected(3, true), [0]);
}

/// `data.scaled_decode`: the smallest eighths that are not below the wanted size.
#[test]
fn scaled_decoding_is_never_below_the_wanted_size() {
    for codec in ["jpeg", "zstd"] {
        let dir = tempfile::tempdir().unwrap();
        pack(dir.path(), &[(512, 384)], &[annotation(1, 0, false)], codec);
        let data = Dataset::open(&dir.path().join("shards"), "train2017", 0, false).unwrap();
        let record = data.split.record(0).unwrap();
        let whole = record.decode().unwrap();
        for wanted in [(512, 384), (449, 336), (448, 336), (300, 225), (64, 48), (10, 10)] {
            let found = record.decode_at_least(wanted.0, wanted.1).unwrap();
            if codec == "zstd" {
                assert_eq!(found, whole);
                continue;
            }
            let eighths = (1..=8).find(|n| 64 * n >= wanted.0 && 48 * n >= wanted.1).unwrap();
            assert_eq!((found.width, found.height), (64 * eighths, 48 * eighths), "{wanted:?}");
        }
    }
}
