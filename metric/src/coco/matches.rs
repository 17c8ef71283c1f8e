//! What became of each box at one IoU threshold: for reports, not for the numbers.

use super::groups::Groups;
use super::matching::{Scenes, pairs};
use super::params::Params;
use super::ranking::Ranked;
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
    let groups = Groups::new(problem);
    let area = &params.areas[0];
    let mut out = Matches {
        detections: vec![Fate::LeftOut; problem.detections.len()],
        truth: vec![None; problem.truth.len()],
        truth_ignored: vec![true; problem.truth.len()],
    };
    for k in 0..problem.categories.len() {
        for &g in groups.truth.of(k).0 {
            let truth = &problem.truth[g as usize];
            out.truth_ignored[g as usize] = truth.crowd || area.excludes(truth.area);
        }
        let ranked = Ranked::new(
            problem.detections,
            groups.detections.of(k),
            groups.images,
            &params.max_dets,
        );
        for (&d, &size) in ranked.detection.iter().zip(&ranked.size) {
            out.detections[d as usize] =
                if area.excludes(size) { Fate::Ignored(None) } else { Fate::False };
        }
        let scenes = Scenes::new(groups.truth.of(k), &ranked, groups.images);
        // Pairs of a scene come best score first, so a crowd keeps its best.
        for (position, g, ignored) in pairs(problem, area, iou, &ranked, &scenes) {
            let d = ranked.detection[position as usize];
            out.detections[d as usize] =
                if ignored { Fate::Ignored(Some(g)) } else { Fate::Hit(g) };
            out.truth[g as usize].get_or_insert(d);
        }
    }
    out
}
