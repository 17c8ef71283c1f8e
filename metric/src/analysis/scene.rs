//! The boxes of each image, matched at one IoU threshold: the input of all other analyses.
//!
//! Matching is greedy within a class in order of descending score, as in COCO and TIDE. The outcome
//! of a detection therefore does not depend on detections with lower scores, and a score threshold
//! can be applied after matching.

use std::collections::HashMap;

use rayon::prelude::*;

use crate::coco::types::Problem;

/// IoU threshold at which a ground-truth box counts as found.
pub const FOREGROUND: f64 = 0.5;

/// A ground-truth box.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Truth {
    /// Index of its category in [`Problem::categories`].
    pub class: usize,
    /// `[x, y, w, h]` in pixels.
    pub bbox: [f64; 4],
    /// Annotated area in square pixels.
    pub area: f64,
    /// Index in [`Scene::found`] of the matched detection.
    pub matched: Option<usize>,
}

/// Outcome of a detection.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fate {
    /// True positive, with the index of the matched box in [`Scene::truth`].
    Hit(usize),
    /// False positive.
    False,
    /// On a crowd of its class: neither true nor false positive.
    Ignored,
}

/// A detection.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// Index of its category in [`Problem::categories`].
    pub class: usize,
    /// `[x, y, w, h]` in pixels.
    pub bbox: [f64; 4],
    /// Confidence.
    pub score: f64,
    /// Outcome.
    pub fate: Fate,
}

/// The boxes of one image.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Scene {
    /// Image id.
    pub image: i64,
    /// Ground truth other than crowd regions.
    pub truth: Vec<Truth>,
    /// Crowd regions.
    pub crowds: Vec<Truth>,
    /// Detections by descending score.
    pub found: Vec<Found>,
}

impl Scene {
    /// IoU of `bbox` with each box of [`Self::truth`].
    pub fn overlaps<'a>(&'a self, bbox: &'a [f64; 4]) -> impl Iterator<Item = f64> + 'a {
        self.truth.iter().map(|t| overlap(bbox, &t.bbox, false))
    }
}

/// Intersection over union; for a crowd, intersection over the detection's area.
pub fn overlap(found: &[f64; 4], truth: &[f64; 4], crowd: bool) -> f64 {
    let ([dx, dy, dw, dh], [gx, gy, gw, gh]) = (*found, *truth);
    let w = (dx + dw).min(gx + gw) - dx.max(gx);
    let h = (dy + dh).min(gy + gh) - dy.max(gy);
    if w <= 0.0 || h <= 0.0 {
        return 0.0;
    }
    let both = w * h;
    both / if crowd { dw * dh } else { dw * dh + gw * gh - both }
}

/// Sorts by descending score; stable, NaN last.
pub(super) fn best_first<T>(items: &mut [T], score: impl Fn(&T) -> f64) {
    // Adding 0 turns -0 into 0, which `total_cmp` would order differently.
    let rank = |s: f64| if s.is_nan() { f64::NEG_INFINITY } else { s + 0.0 };
    items.sort_by(|a, b| rank(score(b)).total_cmp(&rank(score(a))));
}

/// Scenes in the order of the problem's images, with at most `limit` detections each, matched at
/// IoU threshold `iou`.
pub fn scenes(problem: &Problem, limit: usize, iou: f64) -> Vec<Scene> {
    let class: HashMap<i64, usize> =
        problem.categories.iter().enumerate().map(|(k, &c)| (c, k)).collect();
    let mut place = HashMap::with_capacity(problem.images.len());
    let mut scenes: Vec<Scene> = vec![];
    for &image in problem.images {
        place.entry(image).or_insert_with(|| {
            scenes.push(Scene { image, ..Scene::default() });
            scenes.len() - 1
        });
    }
    for g in problem.truth {
        let (Some(&class), Some(&i)) = (class.get(&g.category_id), place.get(&g.image_id)) else {
            continue;
        };
        let list = if g.crowd { &mut scenes[i].crowds } else { &mut scenes[i].truth };
        list.push(Truth { class, bbox: g.bbox, area: g.area, matched: None });
    }
    for d in problem.detections {
        let (Some(&class), Some(&i)) = (class.get(&d.category_id), place.get(&d.image_id)) else {
            continue;
        };
        scenes[i].found.push(Found { class, bbox: d.bbox, score: d.score, fate: Fate::False });
    }
    scenes.par_iter_mut().for_each(|s| {
        best_first(&mut s.found, |f| f.score);
        s.found.truncate(limit);
        match_detections(s, iou);
    });
    scenes
}

/// Matches the detections of a scene.
fn match_detections(scene: &mut Scene, iou: f64) {
    for d in 0..scene.found.len() {
        let found = scene.found[d];
        // The first of equal IoUs, like `argmax` in tidecv.
        let mut best: Option<(usize, f64)> = None;
        for (g, t) in scene.truth.iter().enumerate() {
            if t.class == found.class && t.matched.is_none() {
                let v = overlap(&found.bbox, &t.bbox, false);
                if v >= iou && best.is_none_or(|(_, b)| v > b) {
                    best = Some((g, v));
                }
            }
        }
        scene.found[d].fate = if let Some((g, _)) = best {
            scene.truth[g].matched = Some(d);
            Fate::Hit(g)
        } else if scene
            .crowds
            .iter()
            .any(|c| c.class == found.class && overlap(&found.bbox, &c.bbox, true) > iou)
        {
            Fate::Ignored
        } else {
            Fate::False
        };
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::coco::types::{Detection, GroundTruth};

    /// Ground truth in image 1: a 10 x 10 box with left edge `x`.
    pub(crate) fn gt(category_id: i64, x: f64) -> GroundTruth {
        GroundTruth {
            id: 1,
            image_id: 1,
            category_id,
            bbox: [x, 0., 10., 10.],
            area: 100.,
            crowd: false,
        }
    }

    /// Detection in image 1: a 10 x 10 box with left edge `x`.
    pub(crate) fn dt(category_id: i64, x: f64, score: f64) -> Detection {
        Detection { image_id: 1, category_id, bbox: [x, 0., 10., 10.], score }
    }

    /// The scene of image 1 with categories 1 and 2.
    pub(crate) fn one(truth: &[GroundTruth], detections: &[Detection]) -> Vec<Scene> {
        scenes(&Problem { images: &[1], categories: &[1, 2], truth, detections }, 100, 0.5)
    }

    #[test]
    fn highest_score_is_matched_and_crowds_are_ignored() {
        let crowd = GroundTruth { crowd: true, bbox: [100., 0., 50., 50.], ..gt(1, 0.) };
        let s = &one(
            &[gt(1, 0.), crowd],
            &[
                dt(1, 1., 0.4),
                dt(1, 0., 0.9),
                dt(2, 0., 0.8),
                dt(1, 110., 0.7),
                dt(2, 110., 0.1),
                dt(1, 0., f64::NAN),
            ],
        )[0];
        let fates: Vec<Fate> = s.found.iter().map(|f| f.fate).collect();
        assert_eq!(
            fates,
            [Fate::Hit(0), Fate::False, Fate::Ignored, Fate::False, Fate::False, Fate::False]
        );
        assert_eq!(s.truth[0].matched, Some(0));
        assert!(s.found[5].score.is_nan());
    }

    #[test]
    fn unknown_images_and_classes_are_skipped_and_the_limit_applies() {
        let unknown = Detection { image_id: 9, ..dt(1, 0., 0.5) };
        let p = Problem {
            images: &[1, 1],
            categories: &[1],
            truth: &[gt(7, 0.)],
            detections: &[unknown, dt(1, 0., 0.5), dt(1, 0., 0.6)],
        };
        let s = scenes(&p, 1, 0.5);
        assert_eq!((s.len(), s[0].truth.len(), s[0].found.len()), (1, 0, 1));
        assert_eq!(s[0].found[0].score, 0.6);
    }
}
