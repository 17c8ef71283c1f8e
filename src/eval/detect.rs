//! Post-processing of the raw predictions for one image: score threshold, top-k of each level,
//! clip, rescale, NMS per class. Follows mmdetection's `get_bboxes` and `multiclass_nms`.

use super::config::EvalConfig;

/// A detected box.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Detection {
    /// `[x1, y1, x2, y2]`, pixels of the original image.
    pub bbox: [f32; 4],
    /// Class probability, times the predicted quality where the head predicts one; 0 to 1.
    pub score: f32,
    /// Class, 0 to C - 1.
    pub label: u32,
}

impl Detection {
    /// The box as COCO's `[x, y, width, height]`.
    pub fn xywh(&self) -> [f64; 4] {
        let [x1, y1, x2, y2] = self.bbox.map(f64::from);
        [x1, y1, x2 - x1, y2 - y1]
    }
}

/// Raw predictions for one image.
#[derive(Debug)]
pub struct Image<'a> {
    /// Scores that candidates are thresholded and ranked by, `[P, C]`.
    pub ranked: &'a [f32],
    /// Factor of the final score, `[P]`; `None` where `ranked` is the final score.
    pub factor: Option<&'a [f32]>,
    /// Boxes `[P, 4]` as `[x1, y1, x2, y2]`, pixels of the network input.
    pub boxes: &'a [f32],
    /// Number of points of each level; P in total.
    pub levels: &'a [usize],
    /// (width, height) of the network input without padding, pixels.
    pub size: (f32, f32),
    /// Network input pixels per pixel of the original image, (x, y).
    pub scale: (f32, f32),
}

/// With this many candidates or more, mmcv's `batched_nms` (`split_thr`) runs NMS class by class
/// instead of once on boxes shifted by class.
const CLASSWISE_NMS_FROM: usize = 10_000;

/// All detections of one image, by descending score.
pub fn detect(image: &Image, c: &EvalConfig) -> Vec<Detection> {
    select(&candidates(image, c, false), c, false)
}

/// The candidates for NMS: pairs of point and class above `eval.score_threshold`, at most
/// `eval.per_level` of each level, with boxes clipped and in pixels of the original image.
/// `mirrored`: the network input was flipped left to right.
pub fn candidates(image: &Image, c: &EvalConfig, mirrored: bool) -> Vec<Detection> {
    let classes = image.ranked.len() * 4 / image.boxes.len().max(1);
    let mut found = vec![];
    let mut base = 0;
    for &n in image.levels {
        let mut level: Vec<(f32, usize)> = image.ranked[base * classes..(base + n) * classes]
            .iter()
            .enumerate()
            .filter(|(_, s)| f64::from(**s) > c.score_threshold)
            .map(|(i, s)| (*s, base * classes + i))
            .collect();
        // Ties are ordered by index, so that the result does not depend on the sort.
        level.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        level.truncate(c.per_level);
        found.extend(level);
        base += n;
    }
    let (w, h) = image.size;
    let convert = |(ranked, i): (f32, usize)| {
        let score = image.factor.map_or(ranked, |f| ranked * f[i / classes]);
        let b = &image.boxes[i / classes * 4..][..4];
        let (left, right) = if mirrored { (w - b[2], w - b[0]) } else { (b[0], b[2]) };
        let x = |v: f32| v.clamp(0.0, w) / image.scale.0;
        let y = |v: f32| v.clamp(0.0, h) / image.scale.1;
        let bbox = [x(left), y(b[1]), x(right), y(b[3])];
        Detection { bbox, score, label: (i % classes) as u32 }
    };
    found.into_iter().map(convert).collect()
}

/// Applies NMS and keeps at most `eval.per_image` detections, by descending score; with `vote`
/// their boxes are then replaced by the voted ones of PAA.
pub fn select(candidates: &[Detection], c: &EvalConfig, vote: bool) -> Vec<Detection> {
    let mut keep = nms(candidates, c.nms_iou, candidates.len() < CLASSWISE_NMS_FROM);
    keep.truncate(c.per_image);
    let kept = keep.into_iter().map(|i| candidates[i]);
    if !vote {
        return kept.collect();
    }
    kept.map(|d| Detection { bbox: voted(&d, candidates), ..d }).collect()
}

/// A candidate votes for a box if their IoU is above this.
const VOTE_IOU: f32 = 0.01;
/// Width of the weight `exp(-(1 - IoU)^2 / width)` of a vote.
const VOTE_WIDTH: f32 = 0.025;

/// Score voting (PAA; Kim and Lee, ECCV 2020, Sec. 3.4): the mean of all candidates of the
/// detection's class, weighted by score and IoU with it.
fn voted(kept: &Detection, candidates: &[Detection]) -> [f32; 4] {
    let (mut sum, mut total) = ([0.0f32; 4], 0.0);
    for other in candidates.iter().filter(|o| o.label == kept.label) {
        let iou = iou(&kept.bbox, &other.bbox);
        if iou > VOTE_IOU {
            let weight = other.score * (-(1.0 - iou).powi(2) / VOTE_WIDTH).exp();
            total += weight;
            for (sum, v) in sum.iter_mut().zip(other.bbox) {
                *sum += weight * v;
            }
        }
    }
    // A box without area has no IoU with itself.
    if total > 0.0 { sum.map(|v| v / total) } else { kept.bbox }
}

fn iou(a: &[f32; 4], b: &[f32; 4]) -> f32 {
    let side = |axis: usize| (a[axis + 2].min(b[axis + 2]) - a[axis].max(b[axis])).max(0.0);
    let area = |b: &[f32; 4]| (b[2] - b[0]) * (b[3] - b[1]);
    let overlap = side(0) * side(1);
    overlap / (area(a) + area(b) - overlap)
}

/// Greedy NMS within each class: a box is suppressed if its IoU with a kept box of higher score
/// exceeds `iou`. Returns the indices of the kept boxes by descending score, ties in input order.
///
/// `shifted`: computes IoU in f32 on coordinates that are offset by class, as mmcv's `batched_nms`
/// does, including its rounding errors.
pub fn nms(boxes: &[Detection], iou: f64, shifted: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..boxes.len()).collect();
    order.sort_by(|&a, &b| boxes[b].score.total_cmp(&boxes[a].score));
    let offset =
        if shifted { boxes.iter().flat_map(|b| b.bbox).fold(0.0, f32::max) + 1.0 } else { 0.0 };
    let shift = |b: &Detection| b.bbox.map(|v| v + b.label as f32 * offset);
    let mut kept: Vec<usize> = vec![];
    let mut by_class: std::collections::HashMap<u32, Vec<([f32; 4], f32)>> =
        std::collections::HashMap::new();
    for i in order {
        let b = shift(&boxes[i]);
        let area = (b[2] - b[0]) * (b[3] - b[1]);
        let class = by_class.entry(boxes[i].label).or_default();
        let suppressed = class.iter().any(|(k, k_area)| {
            let w = (b[2].min(k[2]) - b[0].max(k[0])).max(0.0);
            let h = (b[3].min(k[3]) - b[1].max(k[1])).max(0.0);
            let overlap = w * h;
            // For two boxes without area this is 0 / 0 = NaN, which does not suppress.
            f64::from(overlap / (k_area + area - overlap)) > iou
        });
        if !suppressed {
            class.push((b, area));
            kept.push(i);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn square(x: f32, score: f32, label: u32) -> Detection {
        Detection { bbox: [x, 0.0, x + 10.0, 10.0], score, label }
    }

    #[test]
    fn nms_keeps_the_best_of_each_class() {
        let boxes =
            [square(0.0, 0.5, 0), square(1.0, 0.9, 0), square(1.0, 0.8, 1), square(50.0, 0.1, 0)];
        assert_eq!(nms(&boxes, 0.6, true), [1, 2, 3]);
        assert_eq!(nms(&boxes, 0.6, false), [1, 2, 3]);
        assert_eq!(
            nms(&[square(0.0, 0.5, 0); 2], 0.6, true),
            [0],
            "of equal scores the first is kept"
        );
        assert_eq!(
            nms(&[Detection { bbox: [0.0; 4], ..square(0.0, 0.5, 0) }; 2], 0.6, true),
            [0, 1],
            "boxes without area are not suppressed"
        );
        assert!(nms(&[], 0.6, true).is_empty());
    }

    /// As in FCOS: threshold and top-k by class probability, final score with centre-ness.
    #[test]
    fn quality_is_multiplied_after_threshold_and_top_k() {
        // Two points, two classes; the first point has the higher probability and the lower
        // quality.
        let boxes = [0.0, 0.0, 10.0, 10.0, 50.0, 0.0, 60.0, 10.0];
        let image = |factor: &'static [f32], mirrored: bool| {
            let (ranked, levels) = (&[0.9, 0.04, 0.6, 0.5], &[2]);
            let image = Image {
                ranked,
                factor: Some(factor),
                boxes: &boxes,
                levels,
                size: (100.0, 100.0),
                scale: (1.0, 1.0),
            };
            let c = EvalConfig { per_level: 2, ..EvalConfig::default() };
            let found = select(&candidates(&image, &c, mirrored), &c, false);
            found.iter().map(|d| (d.label, d.score, d.bbox[0])).collect::<Vec<_>>()
        };
        // 0.04 is below the threshold of 0.05 and 0.5 is not in the top 2; 0.9 * 0.01 is kept
        // although it is below the threshold.
        assert_eq!(image(&[0.01, 0.5], false), [(0, 0.6 * 0.5, 50.0), (0, 0.9 * 0.01, 0.0)]);
        assert_eq!(image(&[0.01, 0.5], true), [(0, 0.6 * 0.5, 40.0), (0, 0.9 * 0.01, 90.0)]);
    }

    #[test]
    fn voting_moves_a_box_to_the_weighted_mean_of_its_class() {
        // IoU 9 / 11 with the second box; the third is of another class, the fourth apart.
        let found =
            [square(0.0, 0.8, 0), square(1.0, 0.4, 0), square(2.0, 0.7, 1), square(50.0, 0.6, 0)];
        let kept = select(&found, &EvalConfig::default(), true);
        let weight = 0.4 * (-(2.0f32 / 11.0).powi(2) / 0.025).exp();
        let x = weight / (0.8 + weight);
        assert_eq!(kept.len(), 3);
        assert!((kept[0].bbox[0] - x).abs() < 1e-6 && kept[0].score == 0.8, "{kept:?}");
        assert_eq!((kept[1].bbox, kept[2].bbox[0]), (found[2].bbox, 50.0));
        let empty = Detection { bbox: [3.0; 4], ..found[0] };
        assert_eq!(select(&[empty], &EvalConfig::default(), true)[0].bbox, [3.0; 4]);
    }

    #[test]
    fn mirrored_predictions_give_the_same_boxes() {
        let image = |boxes| Image {
            ranked: &[0.9],
            factor: None,
            boxes,
            levels: &[1],
            size: (200.0, 100.0),
            scale: (2.0, 1.0),
        };
        let c = EvalConfig::default();
        let plain = candidates(&image(&[20.0, 30.0, 80.0, 90.0]), &c, false);
        assert_eq!(candidates(&image(&[120.0, 30.0, 180.0, 90.0]), &c, true), plain);
        assert_eq!(
            select(&[plain.clone(), plain.clone()].concat(), &c, false),
            plain,
            "NMS merges detections of both views"
        );
    }

    #[test]
    fn boxes_are_clipped_then_rescaled() {
        let image = Image {
            ranked: &[0.9, 0.04],
            factor: None,
            boxes: &[-5.0, 2.0, 300.0, 20.0],
            levels: &[1],
            size: (200.0, 100.0),
            scale: (2.0, 0.5),
        };
        let found = detect(&image, &EvalConfig::default());
        assert_eq!(found, [Detection { bbox: [0.0, 4.0, 100.0, 40.0], score: 0.9, label: 0 }]);
    }
}
