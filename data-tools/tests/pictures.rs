//! Formats of source images, and EXIF orientation.

mod support;

use std::io::Cursor;

use dw_shards::{Split, pixels};
use image::{DynamicImage, ImageFormat, RgbImage};
use serde_json::json;
use support::{Set, fails, ok, pack, with_orientation, words};

/// A picture whose pixels all differ.
fn picture() -> RgbImage {
    RgbImage::from_fn(40, 24, |x, y| image::Rgb([6 * x as u8, 10 * y as u8, 77]))
}

fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut out = Cursor::new(vec![]);
    image.write_to(&mut out, format).unwrap();
    out.into_inner()
}

#[test]
fn lossless_formats_give_the_pixels_of_the_file() {
    use ImageFormat::{Bmp, Png, Tiff, WebP};
    let rgb = DynamicImage::ImageRgb8(picture());
    for format in [Bmp, Png, Tiff, WebP] {
        let file = encoded(&rgb, format);
        assert_eq!(pixels::file_size(&file).unwrap(), (40, 24), "{format:?}");
        let decoded = pixels::decode_source(&file).unwrap();
        assert_eq!(decoded.rgb.data, picture().into_raw(), "{format:?}");
        assert!(!decoded.alpha && decoded.max_16_bit.is_none());
        assert!(pixels::decode_file(&file[..file.len() / 2]).is_err(), "{format:?}, cut");
    }
    for format in [Png, Tiff] {
        let deep = encoded(&DynamicImage::ImageRgb16(rgb.to_rgb16()), format);
        let decoded = pixels::decode_source(&deep).unwrap();
        assert_eq!(decoded.rgb.data, picture().into_raw(), "{format:?}");
        assert_eq!(decoded.max_16_bit, Some(39 * 6 * 257));
        let grey = encoded(&DynamicImage::ImageLuma8(rgb.to_luma8()), format);
        let grey = pixels::decode_file(&grey).unwrap();
        assert!(grey.data.chunks(3).all(|p| p[0] == p[1] && p[1] == p[2]));
    }
    for format in [Png, Tiff, WebP] {
        let decoded = pixels::decode_source(&encoded(&rgb.to_rgba8().into(), format)).unwrap();
        assert!(decoded.alpha && decoded.rgb.data == picture().into_raw(), "{format:?}");
    }
    let float = encoded(&DynamicImage::ImageRgb32F(rgb.to_rgb32f()), Tiff);
    assert!(pixels::decode_file(&float).unwrap_err().contains("floating-point"));
    assert!(pixels::decode_file(b"GIF89a..").unwrap_err().contains("WebP"));
}

/// A header that promises 50,000 x 50,000 pixels is refused before memory is allocated.
#[test]
fn giant_pictures_are_refused() {
    let mut file = encoded(&DynamicImage::ImageRgb8(picture()), ImageFormat::Bmp);
    file[18..22].copy_from_slice(&50_000u32.to_le_bytes());
    file[22..26].copy_from_slice(&50_000u32.to_le_bytes());
    assert!(pixels::decode_file(&file).unwrap_err().contains("50000 x 50000"));
}

/// The size, pixels and first box of the first image.
fn first(set: &Set) -> ((u32, u32), pixels::Rgb, [f64; 4]) {
    let split = Split::open(&set.file("shards"), "train2017").unwrap();
    let record = split.record(0).unwrap();
    let boxes = &record.annotations.boxes;
    (record.entry.original(), record.decode().unwrap(), boxes[0].bbox)
}

#[test]
fn exif_orientation_turns_pixels_and_boxes_of_the_stored_size() {
    let set = Set::new();
    let (width, height) = (48, 32);
    let rgb =
        image::imageops::resize(&picture(), width, height, image::imageops::FilterType::Nearest);
    let plain = pixels::Rgb { width: 48, height: 32, data: rgb.into_raw() };
    let plain = pixels::encode_jpeg(&plain, 95).unwrap();
    std::fs::write(set.first_image(), with_orientation(&plain, 6)).unwrap();
    let annotate = |size: (u32, u32), bbox: [f64; 4]| {
        set.edit(|v| {
            v["images"][0]["width"] = size.0.into();
            v["images"][0]["height"] = size.1.into();
            let id = v["images"][0]["id"].clone();
            let all = v["annotations"].as_array_mut().unwrap();
            all.retain(|a| a["image_id"] != id);
            all.push(json!({"id": 999, "image_id": id, "category_id": 1, "bbox": bbox,
                            "area": 1.0, "iscrowd": 0}));
        });
    };
    let turned = pixels::exif::turn(pixels::decode_file(&plain).unwrap(), 6).unwrap();
    let apply = ["--split", "train2017", "--exif", "apply"];
    let run = |more: &[&str]| {
        let done = pack(&[&[set.path()], &apply[..], more].concat());
        let text = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success() && text.contains("1 images were turned"), "{text}");
    };
    // The annotated size is the stored one: pixels and boxes are turned.
    annotate((48, 32), [2.0, 3.0, 10.0, 4.0]);
    run(&[]);
    assert_eq!(first(&set), ((32, 48), turned.clone(), [25.0, 2.0, 4.0, 10.0]));
    // The annotated size is the displayed one: only the pixels are turned.
    annotate((32, 48), [25.0, 2.0, 4.0, 10.0]);
    run(&[]);
    assert_eq!(first(&set), ((32, 48), turned, [25.0, 2.0, 4.0, 10.0]));
    let ignored = fails(&[set.path(), "--split", "train2017"], 3);
    assert!(ignored.contains("--exif apply"), "{ignored}");
    // Both sizes are the same, so `--exif-boxes` is required.
    std::fs::write(set.first_image(), with_orientation(&plain, 3)).unwrap();
    annotate((48, 32), [2.0, 3.0, 10.0, 4.0]);
    let asked = fails(&[&[set.path()], &apply[..]].concat(), 3);
    assert!(asked.contains("--exif-boxes"), "{asked}");
    run(&["--exif-boxes", "displayed"]);
    assert_eq!(first(&set).2, [2.0, 3.0, 10.0, 4.0]);
    run(&["--exif-boxes", "stored"]);
    assert_eq!(first(&set).2, [36.0, 25.0, 10.0, 4.0]);
    assert!(fails(&[set.path(), "--exif-boxes", "stored"], 2).contains("--exif apply"));
}

/// A YOLO and a VOC set of one image, `a.jpg`, whose size is not annotated.
struct Unsized(tempfile::TempDir);

impl Unsized {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["yolo/images/train", "yolo/labels/train", "voc/train"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("yolo/data.yaml", "train: images/train\nnames: [cat]\n");
        write("yolo/labels/train/a.txt", "0 0.5 0.25 0.5 0.5\n");
        let xml = "<annotation><object><name>cat</name><bndbox><xmin>3</xmin><ymin>5</ymin>\
                   <xmax>8</xmax><ymax>20</ymax></bndbox></object></annotation>";
        write("voc/train/a.xml", xml);
        Self(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// Writes an image of 40 x 24 pixels to both sets.
    fn image(&self, name: &str, orientation: u8) {
        let plain = pixels::Rgb { width: 40, height: 24, data: picture().into_raw() };
        let file = with_orientation(&pixels::encode_jpeg(&plain, 95).unwrap(), orientation);
        for folder in ["yolo/images/train", "voc/train"] {
            std::fs::write(self.0.path().join(folder).join(name), &file).unwrap();
        }
    }

    /// Packs a set; returns its split.
    fn pack(&self, set: &str, options: &str) -> Split {
        ok(&[&[&*self.path(set), "-o", &*self.path("out")], &*words(options)].concat());
        Split::open(&self.0.path().join("out"), "train").unwrap()
    }
}

/// The labels of YOLO, and of VOC files without `<size>`, do not tell whether they refer to the
/// stored pixels; OpenCV, which most of their tools use, rotates the image.
#[test]
fn exif_orientations_of_images_without_an_annotated_size_need_a_decision() {
    let sets = Unsized::new();
    for orientation in [2, 3, 6] {
        sets.image("a.jpg", orientation);
        for set in ["yolo", "voc"] {
            let text = fails(&[&sets.path(set), "-o", &sets.path("out")], 3);
            for word in ["a.jpg", &format!("orientation {orientation}"), "--exif apply --exif-bo"] {
                assert!(text.contains(word), "{text}");
            }
        }
    }
    let run = |set: &str, options: &str| {
        let split = sets.pack(set, options);
        let record = split.record(0).unwrap();
        (record.entry.original(), record.annotations.boxes[0].bbox)
    };
    assert_eq!(run("yolo", "--exif ignore"), ((40, 24), [10.0, 0.0, 20.0, 12.0]));
    let displayed = "--exif apply --exif-boxes displayed";
    assert_eq!(run("yolo", displayed), ((24, 40), [6.0, 0.0, 12.0, 20.0]));
    assert_eq!(run("voc", "--exif ignore"), ((40, 24), [2.0, 4.0, 6.0, 16.0]));
    assert_eq!(run("voc", displayed), ((24, 40), [2.0, 4.0, 6.0, 16.0]));
    sets.image("a.jpg", 1);
    assert_eq!(run("yolo", "--level 1"), ((40, 24), [10.0, 0.0, 20.0, 12.0]));
}

#[test]
fn a_decision_on_exif_orientations_resumes_without_losing_images() {
    let sets = Unsized::new();
    sets.image("a.jpg", 1);
    sets.image("b.jpg", 6);
    // It is no bad image, which could be left out.
    let skip = ["--bad-images", "skip"];
    let text = fails(&[&[&*sets.path("yolo"), "-o", &sets.path("out")], &skip[..]].concat(), 3);
    assert!(text.contains("b.jpg") && text.contains("orientation 6"), "{text}");
    assert_eq!(sets.pack("yolo", "--bad-images skip --resume --exif ignore").len(), 2);
    // The shards before `b.jpg` are kept.
    let data = (0..3 * 200 * 100).map(|i| (i * 7919 % 251) as u8).collect();
    let large = pixels::encode_jpeg(&pixels::Rgb { width: 200, height: 100, data }, 95).unwrap();
    for name in ["0.jpg", "1.jpg"] {
        std::fs::write(sets.path(&format!("yolo/images/train/{name}")), &large).unwrap();
    }
    let (set, out) = (sets.path("yolo"), sets.path("kept"));
    let args = [&[&*set, "-o", &*out], &*words("--pixels jpeg --shard-size 4KiB")].concat();
    assert!(fails(&args, 3).contains("orientation 6"));
    let done = pack(&[&*args, &["--resume", "--exif", "ignore"]].concat());
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success() && text.contains("shards kept"), "{text}");
}

/// Files written by another library: palettes, CMYK, one bit per pixel, LZW.
#[test]
fn unusual_files_are_decoded() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/pictures/");
    let read = |name: &str| std::fs::read(format!("{folder}{name}")).unwrap();
    // A format that the decoder does not support is rejected rather than decoded wrongly.
    assert!(pixels::decode_file(&read("palette.tiff")).unwrap_err().contains("Palette"));
    let decode = |name: &str| {
        let bytes = read(name);
        let rgb = pixels::decode_file(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((rgb.width, rgb.height), (16, 12), "{name}");
        rgb.data
    };
    let expected = decode("rgb.png");
    let far = |data: &[u8], by: u8| {
        data.iter().zip(&expected).filter(|(a, b)| a.abs_diff(**b) > by).count()
    };
    for name in ["rgb.bmp", "rgb.tiff", "alpha.webp"] {
        assert_eq!(far(&decode(name), 0), 0, "{name}");
    }
    for name in ["cmyk.tiff", "cmyk.jpg"] {
        assert!(far(&decode(name), 40) < 30, "{name}: {}", far(&decode(name), 40));
    }
    assert_eq!(decode("palette.png"), decode("palette.bmp"));
    for name in ["grey.tiff", "bits.png", "lossy.webp", "small.jpg"] {
        decode(name);
    }
}
