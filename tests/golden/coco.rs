//! The metric, compared with pycocotools.

#[path = "../../metric/tests/coco_support/golden.rs"]
mod golden;

use tch::Kind;

use crate::case::Case;

pub fn check(case: &Case, _: Kind) -> Result<(), String> {
    golden::check(&case.path)
}
