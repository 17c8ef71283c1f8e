//! JPEG files that decoders read with a warning: repaired, refused, left out or kept.

mod support;

use std::path::Path;

use dw_shards::{Split, pixels};
use support::{Set, fails, pack};

/// Packs `train2017` with both codecs; returns what was logged and the pixels of image 1.
fn packed(set: &Set, options: &[&str]) -> Vec<(String, pixels::Rgb)> {
    let one = |codec: &&str| {
        let args = [set.path(), "--split", "train2017", "--pixels", codec];
        let done = pack(&[&args, options].concat());
        let text = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{codec} {options:?}: {text}");
        let split = Split::open(&set.file("shards"), "train2017").unwrap();
        assert_eq!(split.len(), 9);
        let record = (0..9).map(|i| split.record(i).unwrap()).find(|r| r.entry.image_id == 1);
        (text, record.unwrap().decode().unwrap())
    };
    ["zstd", "jpeg"].iter().map(one).collect()
}

/// Offset of the scan's data: behind the segment of marker `0xffda`.
fn scan(file: &[u8]) -> usize {
    let at = file.windows(2).position(|b| b == [0xff, 0xda]).unwrap();
    at + 2 + usize::from(file[at + 2]) * 256 + usize::from(file[at + 3])
}

fn write(path: &Path, parts: &[&[u8]]) {
    std::fs::write(path, parts.concat()).unwrap();
}

#[test]
fn files_whose_pixels_are_complete_are_repaired() {
    let set = Set::new();
    let (path, file) = (set.first_image(), std::fs::read(set.first_image()).unwrap());
    let expected = pixels::decode_file(&file).unwrap();
    let no_end = &file[..file.len() - 2];
    // Behind the first segment (JFIF), as some cameras write it.
    let jfif = 4 + usize::from(file[5]);
    let faults: [&[&[u8]]; 4] = [
        &[no_end],
        &[no_end, b"\0\0"],
        &[&file[..jfif], b"\x12\x34", &file[jfif..]],
        &[&file[..jfif], b"\0\xff\0\xff\xff", &no_end[jfif..]],
    ];
    for fault in faults {
        write(&path, fault);
        let decoded = pixels::decode_source(&std::fs::read(&path).unwrap()).unwrap();
        assert!(decoded.repaired && decoded.rgb == expected);
        for (text, found) in packed(&set, &[]) {
            assert!(text.contains("1 JPEG files have faults"), "{text}");
            assert!(found == expected);
        }
    }
}

/// A file with several scans can end after any of them without a trace.
#[test]
fn truncated_progressive_files_are_not_repaired() {
    let noise = (0..64 * 64 * 3).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8);
    let mut encoder = turbojpeg::Compressor::new().unwrap();
    encoder.set_progressive(true).unwrap();
    let data: Vec<u8> = noise.collect();
    let format = turbojpeg::PixelFormat::RGB;
    let image = turbojpeg::Image { pixels: &data[..], width: 64, pitch: 192, height: 64, format };
    let file = encoder.compress_to_vec(image).unwrap();
    let whole = pixels::decode_file(&file).unwrap();
    let silent = (scan(&file)..file.len() - 2).filter(|&n| pixels::decode_file(&file[..n]).is_ok());
    assert_eq!(silent.count(), 0);
    // Faults in the header can be repaired where the end is there.
    let first = 4 + usize::from(file[5]);
    let odd = [&file[..first], b"\x12\x34", &file[first..]].concat();
    let decoded = pixels::decode_source(&odd).unwrap();
    assert!(decoded.repaired && decoded.rgb == whole);
}

/// A damaged marker makes a table look like bytes that belong to no segment. Without Huffman tables
/// libjpeg-turbo uses those of the standard.
#[test]
fn files_that_lost_a_table_are_not_repaired() {
    let set = Set::new();
    let file = std::fs::read(set.first_image()).unwrap();
    let markers = (2..scan(&file)).filter(|n| matches!(file[*n..*n + 2], [0xff, 0xc4 | 0xdb]));
    let markers: Vec<usize> = markers.collect();
    assert!(markers.len() > 2, "{markers:?}");
    for at in markers {
        let mut damaged = file.clone();
        damaged[at] = 0;
        assert!(pixels::decode_source(&damaged).is_err(), "byte {at}");
        // A segment shorter than its own length field.
        let mut short = file.clone();
        short[at + 2..at + 4].fill(0);
        assert!(pixels::decode_source(&short).is_err(), "byte {at}");
    }
}

#[test]
fn damaged_colour_profiles_do_not_matter() {
    let set = Set::new();
    let (path, file) = (set.first_image(), std::fs::read(set.first_image()).unwrap());
    let expected = pixels::decode_file(&file).unwrap();
    // Part 3 of 2.
    let profile = b"\xff\xe2\0\x14ICC_PROFILE\0\x03\x02abcd";
    write(&path, &[&file[..2], profile, &file[2..]]);
    for (_, found) in packed(&set, &[]) {
        assert!(found == expected);
    }
}

#[test]
fn damaged_files_are_refused_unless_asked_for() {
    let set = Set::new();
    let (path, file) = (set.first_image(), std::fs::read(set.first_image()).unwrap());
    let expected = pixels::decode_file(&file).unwrap();
    let row = expected.width * 3;
    let (scan, end) = (scan(&file), file.len() - 2);
    let half = usize::midpoint(scan, end);
    let damages: [&[&[u8]]; 3] = [
        &[&file[..half]],
        &[&file[..end], b"\x55\x55\x55\x55\x55\x55\x55\x55\x55", &file[end..]],
        &[&file[..half], &[0x7b; 40], &file[half + 40..]],
    ];
    for damage in damages {
        write(&path, damage);
        set.assert_rejected(&["000000000001.jpg", "cannot be decoded", "skip", "`keep`"]);
        let skipped = pack(&[set.path(), "--split", "train2017", "--bad-images", "skip"]);
        assert!(String::from_utf8_lossy(&skipped.stdout).contains("8 images"));
        for (text, found) in packed(&set, &["--bad-images", "keep"]) {
            assert!(text.contains("image 1 is damaged: "), "{text}");
            assert!(text.contains("1 damaged JPEG files were packed"), "{text}");
            assert_eq!((found.width, found.height), (expected.width, expected.height));
            // What was read before the damage is there.
            assert!(found.data[..8 * row] == expected.data[..8 * row]);
        }
    }
}

#[test]
fn what_cannot_be_decoded_at_all_is_refused_by_keep() {
    let set = Set::new();
    let file = std::fs::read(set.first_image()).unwrap();
    let args = [set.path(), "--split", "train2017", "--bad-images", "keep"];
    for n in [scan(&file) - 20, 40, 0] {
        write(&set.first_image(), &[&file[..n]]);
        let text = fails(&args, 3);
        assert!(text.contains("000000000001.jpg") && text.contains("decoded"), "{n}: {text}");
    }
    std::fs::remove_file(set.first_image()).unwrap();
    assert!(fails(&args, 3).contains("No such file"));
}

/// Every image that is left out is named.
#[test]
fn all_images_that_are_left_out_are_named() {
    let set = Set::new();
    for n in 1..=8 {
        let path = set.file(&format!("train2017/{n:012}.jpg"));
        std::fs::write(path, if n < 8 { "no image" } else { "" }).unwrap();
    }
    let refused = fails(&[set.path(), "--split", "train2017"], 3);
    assert!(refused.contains("and 3 more of the images read so far"), "{refused}");
    let done = pack(&[set.path(), "--split", "train2017", "--bad-images", "skip"]);
    let text = String::from_utf8_lossy(&done.stderr);
    for n in 1..=8 {
        assert!(text.contains(&format!("{n:012}.jpg")), "{n}: {text}");
    }
}
