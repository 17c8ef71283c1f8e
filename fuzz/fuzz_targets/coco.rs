//! Arbitrary bytes as an annotation file are parsed and checked under every policy without a panic.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use dw_shards::boxes::{BadBoxes, boxes_by_image};
use libfuzzer_sys::fuzz_target;

static PATH: LazyLock<PathBuf> =
    LazyLock::new(|| format!("/dev/shm/dw-fuzz-{}.json", std::process::id()).into());

fuzz_target!(|data: &[u8]| {
    std::fs::write(&*PATH, data).expect("write");
    if let Ok(coco) = dw_shards::coco::read(&PATH) {
        for policy in [BadBoxes::Drop, BadBoxes::Clip, BadBoxes::Fail] {
            let _ = boxes_by_image(&coco, &PATH, policy);
        }
    }
});
