//! Post-processing of one image: threshold, best pairs of each level, clip, rescale, NMS per class.

use crate::config::EvalConfig;

/// A detection in pixels of the original image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Box {
    /// `[x1, y1, x2, y2]`
    pub bbox: [f32; 4],
    /// Class probability times quality.
    pub score: f32,
    /// `0..C`
    pub label: u32,
}

/// Raw predictions for one image.
#[derive(Debug)]
pub struct Image<'a> {
    /// What points are ranked by `[P, C]`.
    pub ranked: &'a [f32],
    /// What multiplies it to the score `[P]`, where the rank is not the score.
    pub factor: Option<&'a [f32]>,
    /// `[P, 4]`, pixels of the network input.
    pub boxes: &'a [f32],
    /// Points of each level.
    pub levels: &'a [usize],
    /// Width and height of the network input without padding.
    pub size: (f32, f32),
    /// Network input pixels per original pixel, x and y.
    pub scale: (f32, f32),
}

/// From this many candidates on the reference runs NMS class by class instead of on shifted boxes.
const SHIFT_BELOW: usize = 10_000;

/// Detections, best first.
pub fn detect(image: &Image, c: &EvalConfig) -> Vec<Box> {
    select(&candidates(image, c, false), c)
}

/// What is above the threshold, the best of each level, clipped and in pixels of the original image; `mirrored`: the network saw
/// the image's mirror image.
pub fn candidates(image: &Image, c: &EvalConfig, mirrored: bool) -> Vec<Box> {
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
        // Total order: by score, then by place, so that ties do not depend on the sort.
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
        Box { bbox: [x(left), y(b[1]), x(right), y(b[3])], score, label: (i % classes) as u32 }
    };
    found.into_iter().map(convert).collect()
}

/// NMS and the limit of an image; best first.
pub fn select(boxes: &[Box], c: &EvalConfig) -> Vec<Box> {
    let mut keep = nms(boxes, c.nms_iou, boxes.len() < SHIFT_BELOW);
    keep.truncate(c.per_image);
    keep.into_iter().map(|i| boxes[i]).collect()
}

/// Greedy NMS inside each class; indices of the boxes kept, best first, ties in input order.
///
/// `shifted`: coordinates are moved apart by class before IoU is taken in f32, as the reference does; the rounding
/// of that is part of its result.
pub fn nms(boxes: &[Box], iou: f64, shifted: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..boxes.len()).collect();
    order.sort_by(|&a, &b| boxes[b].score.total_cmp(&boxes[a].score));
    let step =
        if shifted { boxes.iter().flat_map(|b| b.bbox).fold(0.0, f32::max) + 1.0 } else { 0.0 };
    let moved = |b: &Box| b.bbox.map(|v| v + b.label as f32 * step);
    let mut kept: Vec<usize> = vec![];
    let mut by_class: std::collections::HashMap<u32, Vec<([f32; 4], f32)>> =
        std::collections::HashMap::new();
    for i in order {
        let b = moved(&boxes[i]);
        let area = (b[2] - b[0]) * (b[3] - b[1]);
        let class = by_class.entry(boxes[i].label).or_default();
        let suppressed = class.iter().any(|(k, k_area)| {
            let w = (b[2].min(k[2]) - b[0].max(k[0])).max(0.0);
            let h = (b[3].min(k[3]) - b[1].max(k[1])).max(0.0);
            let overlap = w * h;
            // 0 / 0 of two boxes without area is NaN, which does not suppress.
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

    fn b(x: f32, score: f32, label: u32) -> Box {
        Box { bbox: [x, 0.0, x + 10.0, 10.0], score, label }
    }

    #[test]
    fn nms_keeps_the_best_of_each_class() {
        let boxes = [b(0.0, 0.5, 0), b(1.0, 0.9, 0), b(1.0, 0.8, 1), b(50.0, 0.1, 0)];
        assert_eq!(nms(&boxes, 0.6, true), [1, 2, 3]);
        assert_eq!(nms(&boxes, 0.6, false), [1, 2, 3]);
        assert_eq!(nms(&[b(0.0, 0.5, 0), b(0.0, 0.5, 0)], 0.6, true), [0], "ties: the first stays");
        assert_eq!(
            nms(&[Box { bbox: [0.0; 4], ..b(0.0, 0.5, 0) }; 2], 0.6, true),
            [0, 1],
            "no area: not suppressed"
        );
        assert!(nms(&[], 0.6, true).is_empty());
    }

    /// FCOS: threshold and best of a level by class probability; the score is what quality makes of it.
    #[test]
    fn quality_multiplies_after_the_ranking() {
        // Two points, two classes; the first point has the better class and the worse quality.
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
            let found = select(&candidates(&image, &c, mirrored), &c);
            found.iter().map(|d| (d.label, d.score, d.bbox[0])).collect::<Vec<_>>()
        };
        // 0.04 is below the threshold of 0.05, 0.5 not among the two best; 0.9 * 0.01 stays although it is below 0.05.
        assert_eq!(image(&[0.01, 0.5], false), [(0, 0.6 * 0.5, 50.0), (0, 0.9 * 0.01, 0.0)]);
        assert_eq!(image(&[0.01, 0.5], true), [(0, 0.6 * 0.5, 40.0), (0, 0.9 * 0.01, 90.0)]);
    }

    #[test]
    fn a_mirrored_view_gives_the_same_boxes() {
        let image = |boxes| Image {
            ranked: &[0.9],
            factor: None,
            boxes,
            levels: &[1],
            size: (200.0, 100.0),
            scale: (2.0, 1.0),
        };
        let c = EvalConfig::default();
        let seen = candidates(&image(&[20.0, 30.0, 80.0, 90.0]), &c, false);
        assert_eq!(candidates(&image(&[120.0, 30.0, 180.0, 90.0]), &c, true), seen);
        assert_eq!(
            select(&[seen.clone(), seen.clone()].concat(), &c),
            seen,
            "both views find it once"
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
        assert_eq!(found, [Box { bbox: [0.0, 4.0, 100.0, 40.0], score: 0.9, label: 0 }]);
    }
}
