//! Tests of the pixel codecs.

use turbojpeg::Subsamp;

use super::*;

fn noise(width: usize, height: usize) -> Rgb {
    let data = (0..width * height * 3).map(|i| (i * i * 31 + i / 7) as u8).collect();
    Rgb { width, height, data }
}

const SHAPES: [(usize, usize); 9] =
    [(1, 1), (1, 9), (9, 1), (2, 2), (3, 5), (4, 4), (64, 48), (33, 17), (34, 50)];

#[test]
fn rgb_planes_are_lossless_for_every_shape() {
    for (w, h) in SHAPES {
        let image = noise(w, h);
        let (layout, bytes) = encode_zstd(b"not a JPEG", &image, 1).unwrap();
        assert_eq!(layout, Layout::Rgb);
        assert_eq!(decode(layout, &bytes, w, h).unwrap(), image, "{w} x {h}");
    }
}

/// Also with subsampled chroma and odd sizes.
#[test]
fn planes_of_a_jpeg_give_the_rgb_of_libjpeg_turbo() {
    let cases = [
        (Subsamp::None, Layout::Ycc444),
        (Subsamp::Sub2x1, Layout::Ycc422),
        (Subsamp::Sub2x2, Layout::Ycc420),
        (Subsamp::Gray, Layout::Grey),
    ];
    for (subsamp, expected) in cases {
        for (w, h) in SHAPES {
            for quality in [30, 96] {
                let file = jpeg::encode_with(&noise(w, h), quality, subsamp).unwrap();
                let image = decode_file(&file).unwrap();
                let (layout, bytes) = encode_zstd(&file, &image, 1).unwrap();
                assert_eq!(layout, expected, "{w} x {h}, {subsamp:?}");
                assert!(decode(layout, &bytes, w, h).unwrap() == image, "{w} x {h}, {subsamp:?}");
            }
        }
    }
    // A subsampling without a layout is stored as RGB, which is lossless too.
    let file = jpeg::encode_with(&noise(33, 17), 90, Subsamp::Sub4x1).unwrap();
    let image = decode_file(&file).unwrap();
    let (layout, bytes) = encode_zstd(&file, &image, 1).unwrap();
    assert_eq!((layout, decode(layout, &bytes, 33, 17).unwrap() == image), (Layout::Rgb, true));
}

#[test]
fn pixels_of_another_size_are_refused() {
    let (layout, bytes) = encode_zstd(b"", &noise(8, 8), 1).unwrap();
    for (w, h) in [(8, 9), (8, 7), (1 << 20, 1 << 20), (0, 8), (usize::MAX, 2)] {
        assert!(decode(layout, &bytes, w, h).is_err(), "{w} x {h}");
    }
    let file = encode_jpeg(&noise(8, 8), 90).unwrap();
    assert!(decode(Layout::Jpeg, &file, 8, 9).unwrap_err().contains("found 8 x 8"));
}

#[test]
fn a_scaled_decode_is_a_smaller_version_of_the_image() {
    let data = (0..64 * 48).flat_map(|i| [(i % 64 * 4) as u8, (i / 64 * 5) as u8, 128]).collect();
    let image = Rgb { width: 64, height: 48, data };
    let bytes = encode_jpeg(&image, 96).unwrap();
    for eighths in 1..8 {
        let small = jpeg::decode_eighths(&bytes, eighths).unwrap();
        assert_eq!((small.width, small.height), (8 * eighths, 6 * eighths));
        for (x, y) in
            [(0, 0), (small.width / 2, small.height / 2), (small.width - 1, small.height - 1)]
        {
            let at = |i: usize, n: usize| {
                (i as f64 + 0.5) * 8.0 / eighths as f64 * n as f64 - n as f64 / 2.0
            };
            let p = &small.data[(y * small.width + x) * 3..][..3];
            let off = (f64::from(p[0]) - at(x, 4)).abs().max((f64::from(p[1]) - at(y, 5)).abs());
            assert!(off < 8.0, "{eighths} eighths at {x}, {y}: {p:?}, off by {off}");
        }
    }
    assert_eq!(decode_file(&bytes).unwrap().width, 64, "the next decode is at full size");
}

#[test]
fn a_truncated_jpeg_is_an_error() {
    let bytes = encode_jpeg(&noise(64, 64), 90).unwrap();
    assert!(decode_file(&bytes).is_ok() && jpeg::check(&bytes).is_ok());
    for cut in [bytes.len() / 2, bytes.len() - 40] {
        assert!(decode_file(&bytes[..cut]).is_err(), "cut at {cut} of {}", bytes.len());
        assert!(jpeg::check(&bytes[..cut]).is_err(), "check, cut at {cut} of {}", bytes.len());
    }
    assert!(decode_file(b"GIF89a").is_err());
}

#[test]
fn layout_codes_round_trip() {
    for layout in Layout::ALL {
        assert_eq!(Layout::from_code(layout.code()), Some(layout));
    }
    assert_eq!((Layout::Jpeg.code(), Layout::from_code(0), Layout::from_code(7)), (2, None, None));
}

/// Tables and sizes of an earlier file are not used for one that lacks them.
#[test]
fn a_file_does_not_change_how_the_next_one_is_decoded() {
    let (large, small) = (noise(64, 48), noise(32, 16));
    let [large, small] = [large, small].map(|image| encode_jpeg(&image, 90).unwrap());
    let expected = decode_file(&small).unwrap();
    let frame = |bytes: &[u8]| bytes.windows(2).position(|b| b == [0xff, 0xc0]).unwrap();
    let mut broken = large.clone();
    broken[frame(&large) + 3] = 3;
    for damaged in [&large[..frame(&large) + 4], &large[..frame(&large)], &broken] {
        assert!(decode_file(&large).is_ok() && decode_file(damaged).is_err());
        assert!(file_size(damaged).is_err(), "not the size of the file before");
        let found = decode_file(&small).unwrap();
        assert_eq!((found.width, found.height, &found.data), (32, 16, &expected.data));
    }
    // Without its quantisation tables (DQT).
    let dqt = small.windows(2).position(|b| b == [0xff, 0xdb]).unwrap();
    let length = usize::from(u16::from_be_bytes([small[dqt + 2], small[dqt + 3]]));
    let without = [&small[..dqt], &small[dqt + 2 + length..]].concat();
    assert!(decode_file(&large).is_ok() && decode_file(&without).is_err());
}

/// EXIF data with a fault behind the orientation, and with the prefix that belongs to JPEG files in
/// a WebP file.
#[test]
fn the_orientation_is_found_in_imperfect_exif_data() {
    let mut exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x06\0\0".to_vec();
    // A camera's name at an offset outside the file.
    exif.extend(b"\x01\x0f\0\x02\0\0\0\x20\0\0\xff\0\0\0\0\0");
    let plain = encode_jpeg(&noise(16, 8), 90).unwrap();
    let length = (exif.len() as u16 + 2).to_be_bytes();
    let jpeg = [&plain[..2], &[0xff, 0xe1], &length, &exif, &plain[2..]].concat();
    assert_eq!(orientation(&jpeg), Some(6));
    let mut simple = vec![];
    image::codecs::webp::WebPEncoder::new_lossless(&mut simple)
        .encode(&noise(16, 8).data, 16, 8, image::ExtendedColorType::Rgb8)
        .unwrap();
    let chunk = |name: &[u8; 4], data: &[u8]| {
        let padding = vec![0; data.len() % 2];
        [&name[..], &(data.len() as u32).to_le_bytes(), data, &padding].concat()
    };
    // Flags (EXIF), then width - 1 and height - 1.
    let extended = chunk(b"VP8X", &[8, 0, 0, 0, 15, 0, 0, 7, 0, 0]);
    let body = [b"WEBP", &extended[..], &simple[12..], &chunk(b"EXIF", &exif)].concat();
    let webp = chunk(b"RIFF", &body);
    assert_eq!((file_size(&webp), orientation(&webp)), (Ok((16, 8)), Some(6)));
}
