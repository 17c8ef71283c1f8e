//! What became of each box at one IoU threshold: for reports, not for the numbers.

use super::params::Params;
use super::types::Problem;

/// What became of a detection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Of an unknown image or category, or beyond the limit of its (image, category).
    LeftOut,
    /// True positive: matched this ground truth (index into [`Problem::truth`]).
    Hit(u32),
    /// Counts as nothing: matched a crowd or ground truth outside the area range, or unmatched and itself outside of it.
    Ignored(Option<u32>),
    /// False positive.
    False,
}

/// Fates at one IoU threshold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matches {
    /// By index into [`Problem::detections`].
    pub detections: Vec<Fate>,
    /// By index into [`Problem::truth`]: the detection that took it. A crowd region names its best one only.
    pub truth: Vec<Option<u32>>,
    /// By index into [`Problem::truth`]: does not count (crowd, outside the area range, unknown image or category).
    pub truth_ignored: Vec<bool>,
}

/// Matches at one IoU threshold, with the first area range and the largest limit of `params`.
///
/// Unlike in the numbers, annotation id 0 is nothing special here: its match is a hit.
pub fn matches(problem: &Problem, params: &Params, iou: f64) -> Matches {
    let _ = (problem, params, iou);
    todo!()
}
