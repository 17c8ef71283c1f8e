//! Analysis of an evaluation. Modules in dependency order:
//!
//! * [`scene`]: boxes by image, matched at IoU 0.5, the input of the others
//! * [`error`]: kinds of errors, and the kind of each error
//! * `oracle`: AP of detections with errors corrected
//! * [`tide`]: AP lost to each kind of error
//! * [`score`]: calibration, and the score threshold with the best F1
//! * [`confusion`]: confusion matrix
//! * [`size`]: recall by size
//! * [`image`]: F1 by image
//! * [`label`]: likely errors of the annotation

pub mod confusion;
pub mod error;
pub mod image;
pub mod label;
mod oracle;
pub mod scene;
pub mod score;
pub mod size;
pub mod tide;

use crate::coco::config::MetricConfig;
use crate::coco::types::Problem;

/// All analyses of one problem.
#[derive(Debug, Clone)]
pub struct Analysis {
    /// Boxes by image.
    pub scenes: Vec<scene::Scene>,
    /// AP lost to each kind of error.
    pub tide: tide::Tide,
    /// Calibration of scores.
    pub calibration: score::Calibration,
    /// Score thresholds with the best F1.
    pub cuts: score::Cuts,
    /// Score threshold of the fields below: the one with the best F1 over all classes, or 0.5 if
    /// there is no true positive.
    pub threshold: f64,
    /// Confusion matrix.
    pub confusion: confusion::Confusion,
    /// Recall by size.
    pub sizes: Vec<size::SizeBin>,
    /// Counts by image.
    pub images: Vec<image::ImageScore>,
    /// Likely errors of the annotation.
    pub labels: label::LabelErrors,
}

impl Analysis {
    /// Analyses a problem. The largest detection limit of `config` applies per image over all
    /// classes.
    pub fn new(problem: &Problem, config: &MetricConfig) -> Self {
        let num_classes = problem.categories.len();
        let limit = config.max_dets.iter().copied().max().unwrap_or(100);
        let scenes = scene::scenes(problem, limit, scene::FOREGROUND);
        let cuts = score::cuts(&scenes, num_classes);
        let threshold = cuts.all.map_or(0.5, |c| c.score);
        Self {
            tide: tide::tide(&scenes, num_classes),
            calibration: score::calibration(&scenes),
            threshold,
            confusion: confusion::confusion(&scenes, num_classes, threshold),
            sizes: size::sizes(&scenes, &config.areas, threshold),
            images: image::image_scores(&scenes, threshold),
            labels: label::label_errors(&scenes),
            cuts,
            scenes,
        }
    }
}
