//! COCO's detection metric, equal to pycocotools to the last bit.
//!
//! * [`coco`]: the metric on slices of boxes: matching, accumulation, the 12 numbers
//! * [`json`]: ground truth and results from COCO's files, read in pieces
//! * [`cli`]: what `dw-eval coco` takes and prints
//! * [`analysis`]: which errors cost how much, confusion, calibration, sizes, images
//! * [`report`]: all of it as one page of HTML
//! * [`error`]: what can go wrong, with exit codes

pub mod analysis;
pub mod cli;
pub mod coco;
pub mod error;
pub mod json;
mod pictures;
pub mod report;
mod threads;

pub use coco::matches::{Fate, Matches, matches};
pub use coco::params::{Area, Params};
pub use coco::summary::Summary;
pub use coco::types::{Detection, GroundTruth, Problem};
pub use coco::{Evaluation, evaluate};
pub use error::{Error, Result};
