//! The assignment of ATSS (Zhang et al., CVPR 2020, Algorithm 1), also used by other strategies:
//! the positives of a box are those of its nearest anchors whose IoU reaches a per-box threshold.
//!
//! Each point has one square anchor of side 8 strides around it, used only for the assignment. As
//! in mmdetection the points are the upper left corners of the cells.

use super::{ImageBoxes, Matcher, PointTargets, Targets};
use crate::geometry::{ANCHOR_STRIDES, Grid, STRIDES};

/// Number of candidates of a box on each level, in every system that uses this assignment.
pub const TOPK: usize = 9;

/// Checks `assign.topk`, the number of candidates of a box on each level.
pub(super) fn check_topk(topk: usize) -> Result<(), String> {
    match topk {
        1..=1000 => Ok(()),
        k => Err(format!("`assign.topk`: expected 1 to 1000 anchors a level; found {k}")),
    }
}

/// A positive point is farther than this from every side of its box, pixels.
pub const MARGIN: f32 = 0.01;
/// Lower bound of the union of two boxes, square pixels.
const AREA_EPS: f32 = 1e-6;

/// Finds the box of each point by the IoU of its anchor.
#[derive(Debug)]
pub struct AdaptiveThreshold {
    /// Candidates of a box: the anchors of each level nearest to its centre, at most this many.
    pub topk: usize,
}

impl Matcher for AdaptiveThreshold {
    /// The corner: mmdetection's anchors are centred on the corners of the cells.
    fn offset(&self) -> f64 {
        0.0
    }

    fn targets(&self, grid: &Grid, images: &[ImageBoxes]) -> Targets {
        Targets::Points(self.point_targets(grid, images).tensors())
    }
}

impl AdaptiveThreshold {
    /// Finds the targets of a batch.
    pub fn point_targets(&self, grid: &Grid, images: &[ImageBoxes]) -> PointTargets {
        let mut out = PointTargets::default();
        for (i, image) in images.iter().enumerate() {
            let valid = valid_cells(grid, image);
            out.ignore_outside(grid, &valid, i as i64 * grid.num_points());
            let owners = self.owners(grid, &valid, image);
            out.add_image(i, image, grid, owners.into_iter().map(|owner| Some(owner?.1)));
        }
        out
    }

    /// The box that each point of an image is positive for, with the IoU of box and anchor. Of
    /// several boxes the one with the largest IoU is taken, the first one on a tie.
    fn owners(
        &self,
        grid: &Grid,
        valid: &[(i64, i64)],
        image: &ImageBoxes,
    ) -> Vec<Option<(f32, usize)>> {
        let mut owners: Vec<Option<(f32, usize)>> = vec![None; grid.num_points() as usize];
        for (gt, b) in image.boxes.iter().enumerate() {
            let candidates = self.candidates(grid, valid, b);
            let threshold = threshold(&candidates);
            for c in candidates.iter().filter(|c| c.iou >= threshold && c.is_inside) {
                let owner = &mut owners[c.point];
                if owner.is_none_or(|(iou, _)| c.iou > iou) {
                    *owner = Some((c.iou, gt));
                }
            }
        }
        owners
    }

    /// The candidates of a box: on each level the `topk` valid anchors nearest to its centre, the
    /// first ones on a tie.
    fn candidates(&self, grid: &Grid, valid: &[(i64, i64)], b: &[f32; 4]) -> Vec<Candidate> {
        let center = [f32::midpoint(b[0], b[2]), f32::midpoint(b[1], b[3])];
        let (mut found, mut first) = (vec![], 0);
        for ((&(h, w), &(rows, cols)), &stride) in grid.sizes.iter().zip(valid).zip(&STRIDES) {
            let s = stride as f32;
            let at = |i: i64| (i as f32 + grid.offset as f32) * s;
            // Of the k nearest points of a lattice none is k rows or more from the row nearest to
            // the centre: all points of its column in between are nearer. The same for columns.
            let around = |x: f32, n: i64| {
                let nearest =
                    ((x / s - grid.offset as f32).round() as i64).clamp(0, (n - 1).max(0));
                let k = self.topk as i64;
                (nearest - k).max(0)..(nearest + k + 1).min(n)
            };
            let mut near: Vec<(f32, i64, i64)> = vec![];
            for row in around(center[1], rows) {
                for col in around(center[0], cols) {
                    let (dx, dy) = (at(col) - center[0], at(row) - center[1]);
                    near.push((dx * dx + dy * dy, row, col));
                }
            }
            if near.len() > self.topk {
                near.select_nth_unstable_by(self.topk - 1, |a, b| {
                    a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2)))
                });
                near.truncate(self.topk);
            }
            let candidate = |(_, row, col)| {
                let point = (first + row * w + col) as usize;
                Candidate::new(point, [at(col), at(row)], s, b)
            };
            found.extend(near.into_iter().map(candidate));
            first += h * w;
        }
        found
    }
}

/// An anchor near the centre of a box.
struct Candidate {
    /// Index of its point among the points of the image.
    point: usize,
    /// IoU of anchor and box.
    iou: f32,
    /// Whether the point is inside the box, farther than [`MARGIN`] from its sides.
    is_inside: bool,
}

impl Candidate {
    fn new(point: usize, [x, y]: [f32; 2], stride: f32, &[x1, y1, x2, y2]: &[f32; 4]) -> Self {
        let iou = anchor_iou([x, y], stride, &[x1, y1, x2, y2]);
        let nearest_side = (x - x1).min(y - y1).min(x2 - x).min(y2 - y);
        Self { point, iou, is_inside: nearest_side > MARGIN }
    }
}

/// IoU of a box and the square anchor around the point `[x, y]` of a level of `stride` pixels.
pub fn anchor_iou([x, y]: [f32; 2], stride: f32, &[x1, y1, x2, y2]: &[f32; 4]) -> f32 {
    let half = ANCHOR_STRIDES as f32 / 2.0 * stride;
    let side = |low: f32, high: f32, at: f32| (high.min(at + half) - low.max(at - half)).max(0.0);
    let overlap = side(x1, x2, x) * side(y1, y2, y);
    let union = (2.0 * half) * (2.0 * half) + (x2 - x1) * (y2 - y1) - overlap;
    overlap / union.max(AREA_EPS)
}

/// IoU that a box's candidates must reach to be positive: mean plus sample standard deviation over
/// all candidates.
fn threshold(candidates: &[Candidate]) -> f32 {
    let n = candidates.len() as f64;
    let mean = candidates.iter().map(|c| f64::from(c.iou)).sum::<f64>() / n;
    let squares = candidates.iter().map(|c| (f64::from(c.iou) - mean).powi(2)).sum::<f64>();
    (mean + (squares / (n - 1.0)).sqrt()) as f32
}

/// Number of rows and columns of each level that belong to the image. The others are padding of the
/// batch.
pub fn valid_cells(grid: &Grid, image: &ImageBoxes) -> Vec<(i64, i64)> {
    let cells = |pixels: i64, stride: i64, most: i64| ((pixels + stride - 1) / stride).min(most);
    let level = |(&(h, w), &s): (&(i64, i64), &i64)| match image.padded {
        Some((height, width)) => (cells(height, s, h), cells(width, s, w)),
        None => (h, w),
    };
    grid.sizes.iter().zip(&STRIDES).map(level).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::level_sizes;

    fn grid(h: i64, w: i64) -> Grid {
        Grid { sizes: level_sizes(h, w).to_vec(), offset: 0.0 }
    }

    fn image(boxes: &[[f32; 4]]) -> ImageBoxes {
        let labels = vec![0; boxes.len()];
        ImageBoxes { boxes: boxes.to_vec(), labels, padded: None }
    }

    /// The search window contains the nearest anchors, also on narrow maps and for boxes beyond the
    /// image: a search over all anchors finds the same ones.
    #[test]
    fn candidates_are_the_nearest_anchors_of_each_level() {
        let config = AdaptiveThreshold { topk: TOPK };
        for ((h, w), b) in [
            ((256, 256), [33.0, 60.0, 97.0, 100.0]),
            ((32, 512), [200.5, 3.0, 260.0, 20.0]),
            ((512, 64), [40.0, 470.0, 90.0, 700.0]),
            ((96, 96), [-50.0, -40.0, 10.0, 8.0]),
        ] {
            let grid = grid(h, w);
            let found = config.candidates(&grid, &grid.sizes, &b);
            let mut found: Vec<usize> = found.iter().map(|c| c.point).collect();
            found.sort_unstable();
            let (cx, cy) = (f32::midpoint(b[0], b[2]), f32::midpoint(b[1], b[3]));
            let (mut expected, mut first) = (vec![], 0);
            for (&(h, w), s) in grid.sizes.iter().zip(STRIDES) {
                let distance = |i: i64| {
                    let (dx, dy) = ((i % w * s) as f32 - cx, (i / w * s) as f32 - cy);
                    dx * dx + dy * dy
                };
                let mut level: Vec<i64> = (0..h * w).collect();
                level.sort_by(|a, b| distance(*a).total_cmp(&distance(*b)));
                expected.extend(level.iter().take(9).map(|i| (first + i) as usize));
                first += h * w;
            }
            expected.sort_unstable();
            assert_eq!(found, expected, "{h} x {w}, {b:?}");
        }
    }

    #[test]
    fn a_point_goes_to_the_box_of_the_largest_iou_and_padding_is_ignored() {
        let (grid, config) = (grid(128, 128), AdaptiveThreshold { topk: TOPK });
        // The anchor of stride 8 at (64, 64) is the box itself.
        let square = [32.0, 32.0, 96.0, 96.0];
        let point = 8 * 16 + 8;
        let owner = |boxes: &[[f32; 4]]| {
            let t = config.point_targets(&grid, &[image(boxes)]);
            let at = t.positive.iter().position(|p| *p == point).unwrap();
            (t.gt[at], t.ignored.len())
        };
        assert_eq!(owner(&[square]), (0, 0));
        assert_eq!(owner(&[[30.0, 30.0, 96.0, 96.0], square]), (1, 0), "the larger IoU");
        assert_eq!(owner(&[square, square]), (0, 0), "the first of two equal boxes");
        assert!(config.point_targets(&grid, &[image(&[])]).positive.is_empty());
        // An image of 64 x 128 pixels: half of the rows of each level, of the last level none.
        let half = ImageBoxes { padded: Some((64, 128)), ..image(&[square]) };
        let t = config.point_targets(&grid, &[image(&[]), half]);
        let points = grid.num_points();
        assert_eq!(t.ignored.len() as i64, 8 * 16 + 4 * 8 + 2 * 4 + 2);
        assert_eq!(t.ignored[0], points + 8 * 16);
        assert!(!t.positive.is_empty() && t.positive.iter().all(|p| !t.ignored.contains(p)));
    }
}
