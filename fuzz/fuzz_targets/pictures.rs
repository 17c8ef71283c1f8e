//! Arbitrary bytes as an image file are decoded, and their size and EXIF orientation read, without
//! a panic; a decoded image has the size of the header.
#![no_main]

use dw_shards::pixels::{self, damaged};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let size = pixels::file_size(data);
    let _ = pixels::orientation(data);
    // Larger images are valid, but would cost the fuzzer too much time and memory.
    if size.as_ref().is_ok_and(|(w, h)| w.saturating_mul(*h) > 1 << 22) {
        return;
    }
    let _ = damaged::repair(data);
    if let Ok((rgb, _)) = damaged::decode(data) {
        assert_eq!(rgb.data.len(), 3 * rgb.width * rgb.height);
    }
    if let Ok(rgb) = pixels::decode_file(data) {
        assert_eq!(size, Ok((rgb.width, rgb.height)));
        assert_eq!(rgb.data.len(), 3 * rgb.width * rgb.height);
    }
});
