//! Likely errors of the annotation: objects without a box, and boxes without an object.

use super::error::BACKGROUND;
use super::scene::{FOREGROUND, Scene, best_first, overlap};

/// Minimum score of a detection that suggests an object without a box.
pub const CONFIDENT: f64 = 0.5;

/// A box that may be an error of the annotation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Suspect {
    /// Index of the scene.
    pub scene: usize,
    /// Index in the scene's detections or ground truth.
    pub index: usize,
    /// Highest IoU with the boxes that it was compared with; 0 if there were none.
    pub iou: f64,
}

/// Likely errors of the annotation, the most likely first.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelErrors {
    /// Detections with a score of at least [`CONFIDENT`] whose IoU with ground truth of any class,
    /// crowds included, is below [`FOREGROUND`]; by descending score.
    pub unlabelled: Vec<Suspect>,
    /// Ground truth other than crowds whose IoU with detections of any class and score is below
    /// [`BACKGROUND`]; by descending area, because small objects are often just missed.
    pub unreached: Vec<Suspect>,
}

/// Finds likely errors of the annotation.
pub fn label_errors(scenes: &[Scene]) -> LabelErrors {
    let mut out = LabelErrors { unlabelled: vec![], unreached: vec![] };
    for (scene, s) in scenes.iter().enumerate() {
        for (index, f) in s.found.iter().enumerate().filter(|(_, f)| f.score >= CONFIDENT) {
            let crowds = s.crowds.iter().map(|c| overlap(&f.bbox, &c.bbox, true));
            let iou = s.overlaps(&f.bbox).chain(crowds).fold(0.0, f64::max);
            if iou < FOREGROUND {
                out.unlabelled.push(Suspect { scene, index, iou });
            }
        }
        for (index, t) in s.truth.iter().enumerate() {
            let iou = s.found.iter().map(|f| overlap(&f.bbox, &t.bbox, false)).fold(0.0, f64::max);
            if iou < BACKGROUND {
                out.unreached.push(Suspect { scene, index, iou });
            }
        }
    }
    best_first(&mut out.unlabelled, |s| scenes[s.scene].found[s.index].score);
    best_first(&mut out.unreached, |s| scenes[s.scene].truth[s.index].area);
    out
}

#[cfg(test)]
mod tests {
    use super::super::scene::tests::{dt, gt, one};
    use super::*;
    use crate::coco::types::GroundTruth;

    /// Boxes are 10 wide: a shift of s has IoU (10 - s) / (10 + s).
    #[test]
    fn detections_without_ground_truth_of_any_class() {
        let crowd = GroundTruth { crowd: true, bbox: [500., 0., 90., 90.], ..gt(1, 0.) };
        let s = one(
            &[gt(1, 0.), gt(1, 100.), crowd],
            &[
                dt(1, 0., 0.9),
                dt(2, 1., 0.95),   // of another class, IoU 0.82
                dt(1, 106., 0.7),  // IoU 0.25
                dt(2, 300., 0.8),  // on background
                dt(1, 300., 0.49), // below the threshold
                dt(2, 520., 0.99), // on a crowd of another class
                dt(1, 700., f64::NAN),
            ],
        );
        let found: Vec<f64> =
            label_errors(&s).unlabelled.iter().map(|u| s[u.scene].found[u.index].score).collect();
        assert_eq!(found, [0.8, 0.7]);
        assert!((label_errors(&s).unlabelled[1].iou - 0.25).abs() < 1e-12);
    }

    #[test]
    fn ground_truth_that_no_detection_reaches() {
        let large = GroundTruth { area: 900., ..gt(2, 300.) };
        let s = one(
            &[gt(1, 0.), gt(1, 100.), gt(1, 200.), large],
            &[dt(2, 6., 0.01), dt(1, 109., 0.9)], // IoU 0.25 and 0.05
        );
        let left: Vec<usize> = label_errors(&s).unreached.iter().map(|u| u.index).collect();
        assert_eq!(left, [3, 1, 2]);
        assert!(label_errors(&one(&[], &[])).unreached.is_empty());
    }
}
