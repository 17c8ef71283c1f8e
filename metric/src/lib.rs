//! COCO detection metrics, bit-identical to pycocotools.
//!
//! Modules in dependency order:
//!
//! * [`coco`]: the metric on boxes in memory: matching, precision and recall, AP and AR
//! * [`json`]: readers for COCO ground-truth and results files
//! * [`analysis`]: error breakdown, confusion, calibration, recall by size, F1 by image
//! * [`report`]: evaluation and analysis as one HTML page
//! * `pictures`: loads images for the report
//! * `threads`: starts the thread pool
//! * [`cli`]: `dw-eval coco`: options, output, the run itself

pub mod coco;
pub mod json;

pub mod analysis;
pub mod report;

mod pictures;
mod threads;

pub mod cli;

pub use coco::bootstrap::{Bootstrap, Samples, bootstrap};
pub use coco::config::{Area, MetricConfig};
pub use coco::evaluate;
pub use coco::evaluation::Evaluation;
pub use coco::summary::Summary;
pub use coco::types::{Detection, GroundTruth, Problem};
pub use dw_base::{Error, Result};
