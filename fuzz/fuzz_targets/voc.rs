//! Arbitrary text as an annotation file of Pascal VOC is parsed without a panic; numbers are
//! finite.
#![no_main]

use dw_shards::sources::voc::xml;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(file) = xml::parse(text) {
        assert!(file.objects.iter().flat_map(|o| o.corners).all(f64::is_finite));
    }
});
