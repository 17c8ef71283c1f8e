//! The outcome of each box at one IoU threshold, for reports.

use super::config::MetricConfig;
use super::groups::Groups;
use super::matching::{Scenes, pairs};
use super::ranking::Ranked;
use super::types::Problem;

/// Outcome of a detection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Not evaluated: unknown image or category, or beyond the limit of its (image, category).
    LeftOut,
    /// True positive, with the index of the matched ground truth in [`Problem::truth`].
    Hit(u32),
    /// Neither true nor false positive: matched a crowd or ground truth outside the area range, or
    /// is unmatched and itself outside the area range.
    Ignored(Option<u32>),
    /// False positive.
    False,
}

/// Outcomes of all boxes at one IoU threshold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matches {
    /// By index into [`Problem::detections`].
    pub detections: Vec<Fate>,
    /// Matched detection by index into [`Problem::truth`]; for a crowd, the one with the highest
    /// score.
    pub truth: Vec<Option<u32>>,
    /// Whether ground truth is ignored (crowd, outside the area range, unknown image or category),
    /// by index into [`Problem::truth`].
    pub truth_ignored: Vec<bool>,
}

/// Matches boxes at one IoU threshold, with the first area range and the largest limit of
/// `config`. Unlike in [`evaluate`](super::evaluate), annotation id 0 needs no special handling
/// here: its match is a hit.
pub fn matches(problem: &Problem, config: &MetricConfig, iou: f64) -> Matches {
    let groups = Groups::new(problem);
    let area = &config.areas[0];
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
            &config.max_dets,
        );
        for (&d, &size) in ranked.detection.iter().zip(&ranked.size) {
            out.detections[d as usize] =
                if area.excludes(size) { Fate::Ignored(None) } else { Fate::False };
        }
        let scenes = Scenes::new(groups.truth.of(k), &ranked, groups.images);
        for (position, g, ignored) in pairs(problem, area, iou, &ranked, &scenes) {
            let d = ranked.detection[position as usize];
            out.detections[d as usize] =
                if ignored { Fate::Ignored(Some(g)) } else { Fate::Hit(g) };
            // The pairs of an image are ordered by score, so a crowd keeps the detection with the
            // highest score.
            out.truth[g as usize].get_or_insert(d);
        }
    }
    out
}
