//! Arbitrary text as a label file, as `data.yaml` and as a list of class names of YOLO is parsed
//! without a panic; numbers are finite and classes exist.
#![no_main]

use dw_shards::sources::yolo::{labels, names};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(objects) = labels::parse(text, (640, 480), 80, None) {
        assert!(objects.iter().all(|o| o.class < 80 && o.bbox.iter().all(|v| v.is_finite())));
    }
    for description in [names::parse_yaml(text), names::parse_list(text)].into_iter().flatten() {
        assert!(!description.names.is_empty());
    }
});
