//! What lies behind the numbers: which errors cost how much, what is confused, what scores mean, which images went wrong.
//!
//! * [`scene`]: boxes by image, matched at IoU 0.5; everything below starts from them
//! * [`tide`]: kinds of errors and their cost in AP
//! * [`score`]: calibration, and the threshold with the best F1
//! * [`confusion`]: classes taken for others
//! * [`size`]: found and missed by size
//! * [`image`]: the best and the worst images

pub mod confusion;
pub mod image;
mod oracle;
pub mod scene;
pub mod score;
pub mod size;
pub mod tide;

use crate::{Params, Problem};

/// All of it.
#[derive(Debug, Clone)]
pub struct Analysis {
    /// Boxes by image.
    pub scenes: Vec<scene::Scene>,
    /// Error breakdown.
    pub tide: tide::Tide,
    /// Reliability of scores.
    pub calibration: score::Calibration,
    /// Thresholds with the best F1.
    pub cuts: score::Cuts,
    /// Threshold of what follows: the best F1 over all classes, 0.5 where there is none.
    pub threshold: f64,
    /// Confusion matrix.
    pub confusion: confusion::Confusion,
    /// Found and missed by size.
    pub sizes: Vec<size::SizeBin>,
    /// Image by image.
    pub images: Vec<image::ImageScore>,
}

impl Analysis {
    /// Analyses a problem; detections of an image beyond the largest limit of `params` are left out.
    pub fn new(problem: &Problem, params: &Params) -> Self {
        let classes = problem.categories.len();
        let limit = params.max_dets.iter().copied().max().unwrap_or(100);
        let scenes = scene::scenes(problem, limit, tide::FOREGROUND);
        let cuts = score::cuts(&scenes, classes);
        let threshold = cuts.all.map_or(0.5, |c| c.score);
        Self {
            tide: tide::tide(&scenes, classes),
            calibration: score::calibration(&scenes),
            threshold,
            confusion: confusion::confusion(&scenes, classes, threshold),
            sizes: size::sizes(&scenes, &params.areas, threshold),
            images: image::image_scores(&scenes, threshold),
            cuts,
            scenes,
        }
    }
}
