//! `dw-pack` on annotations and images that are missing, damaged or unusual.

mod support;

use serde_json::json;
use support::{Change, Set, fails, pack, with_orientation};

#[test]
fn exif_rotation_is_reported_and_ignored() {
    let set = Set::new();
    let first = set.first_image();
    let plain = std::fs::read(&first).unwrap();
    std::fs::write(&first, with_orientation(&plain, 6)).unwrap();
    let done = pack(&[set.path(), "--split", "train2017"]);
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success() && text.contains("1 images have an EXIF rotation"), "{text}");
    let split = dw_shards::Split::open(&set.file("shards"), "train2017").unwrap();
    let expected = dw_shards::pixels::decode_file(&plain).unwrap();
    assert!((0..split.len()).any(|i| split.record(i).unwrap().decode().unwrap() == expected));
}

/// CMYK as Adobe writes it: 255 means no ink.
#[test]
fn inverted_cmyk_is_converted_to_rgb() {
    let cmyk = [[255u8, 255, 255, 255], [0, 255, 255, 255], [255, 255, 255, 0], [255, 0, 255, 128]];
    let pixels: Vec<u8> = cmyk.iter().flat_map(|p| p.repeat(16 * 16)).collect();
    let picture = turbojpeg::Image {
        pixels: &pixels[..],
        width: 16,
        pitch: 64,
        height: 64,
        format: turbojpeg::PixelFormat::CMYK,
    };
    let file = turbojpeg::compress(picture, 100, turbojpeg::Subsamp::None).unwrap();
    let rgb = dw_shards::pixels::decode_file(&file).unwrap();
    let near = |row: usize, colour: [u8; 3]| {
        rgb.data[(row * 16 + 8) * 3..][..3].iter().zip(colour).all(|(a, b)| a.abs_diff(b) < 12)
    };
    assert!(near(8, [255, 255, 255]) && near(24, [0, 255, 255]));
    assert!(near(40, [0, 0, 0]) && near(56, [128, 0, 128]));
}

#[test]
fn missing_folders_and_files_are_reported() {
    let set = Set::new();
    let text = fails(&["/no/such/coco"], 2);
    assert!(text.contains("/no/such/coco"), "{text}");
    assert!(fails(&[set.file("train2017").to_str().unwrap()], 2).contains("annotations"));
    assert!(fails(&[set.path(), "--split", "test"], 2).contains("train2017, val2017"));
    assert!(fails(&["info", set.path()], 2).contains("hint: "));
    std::fs::remove_dir_all(set.file("val2017")).unwrap();
    assert!(fails(&[set.path(), "--split", "val2017"], 2).contains("val2017"));
}

#[test]
fn truncated_and_empty_annotation_files_are_rejected() {
    let set = Set::new();
    let text = std::fs::read(set.json()).unwrap();
    std::fs::write(set.json(), &text[..text.len() / 2]).unwrap();
    set.assert_rejected(&["instances_train2017.json", "EOF", "line 1 column"]);
    std::fs::write(set.json(), "").unwrap();
    set.assert_rejected(&["instances_train2017.json"]);
}

#[test]
fn missing_truncated_and_differently_sized_images_are_rejected() {
    let set = Set::new();
    let original = std::fs::read(set.first_image()).unwrap();
    std::fs::write(set.first_image(), &original[..original.len() / 2]).unwrap();
    set.assert_rejected(&["000000000001.jpg", "image 1 "]);
    std::fs::remove_file(set.first_image()).unwrap();
    set.assert_rejected(&["000000000001.jpg", "No such file", "--bad-images skip"]);
    std::fs::copy(set.file("train2017/000000000002.jpg"), set.first_image()).unwrap();
    set.edit(|v| v["images"][0]["width"] = json!(97));
    set.assert_rejected(&["000000000001.jpg", "expected 97 x"]);
    let out = pack(&[set.path(), "--bad-images", "skip", "--split", "train2017"]);
    assert!(out.status.success());
    assert!(String::from_utf8_lossy(&out.stdout).contains("8 images"));
    assert!(String::from_utf8_lossy(&out.stderr).contains("1 images"));
}

#[test]
fn unknown_and_duplicate_ids_are_rejected() {
    let set = Set::new();
    let original = std::fs::read(set.json()).unwrap();
    let cases: [(&str, Change, &[&str]); 6] = [
        ("image", |v| v["annotations"][2]["image_id"] = json!(999), &["annotations[2]", "999"]),
        (
            "category",
            |v| v["annotations"][2]["category_id"] = json!(4),
            &["annotations[2]", "`category_id`"],
        ),
        (
            "annotation id",
            |v| v["annotations"][1]["id"] = v["annotations"][0]["id"].clone(),
            &["annotations[1]", "unique"],
        ),
        (
            "image id",
            |v| v["images"][1]["id"] = v["images"][0]["id"].clone(),
            &["images[1]", "unique"],
        ),
        ("empty split", |v| v["images"] = json!([]), &["images", "none"]),
        (
            "field",
            |v| v["annotations"][3]["bbox"] = json!([1, 2, 3]),
            &["annotations[3]", "length 3"],
        ),
    ];
    for (_, change, words) in cases {
        std::fs::write(set.json(), &original).unwrap();
        set.edit(change);
        set.assert_rejected(words);
    }
}

#[test]
fn invalid_boxes_are_treated_by_the_policy() {
    let set = Set::new();
    set.edit(|v| {
        v["annotations"][0]["bbox"] = json!([5, 5, -3, 4]);
        v["annotations"][1]["bbox"] = json!([5, 5, 0, 4]);
        v["annotations"][2]["bbox"] = json!([500, 5, 3, 4]);
    });
    let text = fails(&[set.path(), "--bad-boxes", "fail"], 3);
    assert!(text.contains("annotations[0]") && text.contains("[5, 5, -3, 4]"), "{text}");
    let out = pack(&[set.path()]);
    let messages = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(
        out.status.success()
            && messages.contains("2 boxes without area")
            && messages.contains("1 boxes outside"),
        "{messages}"
    );
}

#[test]
fn annotations_of_the_rotated_image_get_a_message_of_their_own() {
    let set = Set::new();
    let plain = std::fs::read(set.first_image()).unwrap();
    set.edit(|v| {
        let (w, h) = (v["images"][0]["width"].clone(), v["images"][0]["height"].clone());
        assert_ne!(w, h);
        (v["images"][0]["width"], v["images"][0]["height"]) = (h, w);
    });
    let text = fails(&[set.path(), "--split", "train2017"], 3);
    assert!(text.contains("expected") && !text.contains("EXIF"), "{text}");
    std::fs::write(set.first_image(), with_orientation(&plain, 6)).unwrap();
    let text = fails(&[set.path(), "--split", "train2017"], 3);
    for word in ["000000000001.jpg", "EXIF orientation 6", "--exif apply"] {
        assert!(text.contains(word), "expected `{word}` in: {text}");
    }
}

#[test]
fn pngs_of_16_bits_are_counted() {
    let set = Set::new();
    let sizes: [(&str, u16); 3] = [("dark.png", 4095), ("full.png", 65535), ("alpha.png", 900)];
    for (n, (name, highest)) in sizes.into_iter().enumerate() {
        let path = set.file("train2017").join(name);
        if name == "alpha.png" {
            let pixel = image::Rgba([highest, 3, 2, u16::MAX]);
            let picture: image::ImageBuffer<_, Vec<u16>> =
                image::ImageBuffer::from_pixel(8, 6, pixel);
            picture.save(path).unwrap();
        } else {
            let picture: image::ImageBuffer<_, Vec<u16>> =
                image::ImageBuffer::from_pixel(8, 6, image::Luma([highest]));
            picture.save(path).unwrap();
        }
        let id = 90 + n;
        let entry = json!({"id": id, "file_name": name, "width": 8, "height": 6});
        set.edit(|v| v["images"].as_array_mut().unwrap().push(entry));
    }
    let out = pack(&[set.path(), "--split", "train2017"]);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{text}");
    assert!(text.contains("3 files with 16 bits"), "{text}");
    assert!(text.contains("2 of these have no value above 4095"), "{text}");
}

/// As in TinyPerson. mmdetection leaves such boxes out of training.
#[test]
fn boxes_marked_with_ignore_are_packed_as_crowd_regions() {
    let set = Set::new();
    let mut expected = 0;
    set.edit(|v| {
        for (n, a) in v["annotations"].as_array_mut().unwrap().iter_mut().enumerate() {
            a["iscrowd"] = json!(0);
            a["ignore"] = json!(u8::from(n % 3 == 0));
            expected += usize::from(n % 3 == 0);
        }
    });
    let done = pack(&[set.path(), "--split", "train2017"]);
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(text.contains(&format!("{expected} boxes with `ignore` 1: neither")), "{text}");
    let split = dw_shards::Split::open(&set.file("shards"), "train2017").unwrap();
    assert_eq!(split.entries().map(|e| e.crowd as usize).sum::<usize>(), expected);
}

/// Variants that other tools write.
#[test]
fn floats_boolean_flags_and_a_byte_order_mark_give_the_same_pack() {
    let set = Set::new();
    let (one, two) = (set.file("one"), set.file("two"));
    let pack_into = |out: &std::path::Path| {
        support::ok(&[set.path(), "-o", out.to_str().unwrap(), "--split", "train2017"]);
        let split = dw_shards::Split::open(out, "train2017").unwrap();
        let record = |i| split.record(i).unwrap().annotations;
        (0..split.len()).map(record).collect::<Vec<_>>()
    };
    let plain = pack_into(&one);
    set.edit(|v| {
        for section in ["images", "annotations", "categories"] {
            for entry in v[section].as_array_mut().unwrap() {
                for field in ["id", "image_id", "category_id", "width", "height"] {
                    if let Some(n) = entry.get(field).and_then(serde_json::Value::as_i64) {
                        entry[field] = json!(n as f64);
                    }
                }
                if let Some(n) = entry.get("iscrowd").and_then(serde_json::Value::as_i64) {
                    entry["iscrowd"] = json!(n == 1);
                }
            }
        }
    });
    let text = std::fs::read_to_string(set.json()).unwrap();
    assert!(text.contains("\"id\":1.0") && text.contains("\"iscrowd\":false"));
    std::fs::write(set.json(), format!("\u{feff}{text}")).unwrap();
    assert_eq!(pack_into(&two), plain);
    set.edit_text(|t| t.replacen("\"image_id\":1.0", "\"image_id\":1.5", 1));
    let text = fails(&[set.path(), "--split", "train2017"], 3);
    assert!(text.contains("`image_id`") && text.contains("found 1.5"), "{text}");
}
