//! The assignment of FCOS (Tian et al., ICCV 2019, Sec. 3.1): each point is trained on the smallest
//! box around it whose size matches the point's level.

use super::{ImageBoxes, Matcher, PointTargets, Targets};
use crate::geometry::{Grid, STRIDES};

/// Centre sampling: half the side of the square around a box's centre whose points can be positive,
/// strides.
pub const RADIUS: f64 = 1.5;

/// Upper end of the range of each level, pixels: a box matches a point if the largest of the
/// point's distances (l, t, r, b) is in the range of its level. The lower end is the previous
/// level's upper one.
const UPPER: [f32; 5] = [64.0, 128.0, 256.0, 512.0, 1e8];

/// Finds the box of each point: the smallest one that matches.
#[derive(Debug)]
pub struct SmallestBox {
    /// The radius of centre sampling in strides; `None` without centre sampling.
    pub radius: Option<f64>,
}

impl Matcher for SmallestBox {
    fn targets(&self, grid: &Grid, images: &[ImageBoxes]) -> Targets {
        Targets::Points(self.point_targets(grid, images).tensors())
    }
}

impl SmallestBox {
    /// Finds the targets of a batch.
    pub fn point_targets(&self, grid: &Grid, images: &[ImageBoxes]) -> PointTargets {
        let mut out = PointTargets::default();
        for (i, image) in images.iter().enumerate() {
            let first_gt = out.boxes.len() as i64;
            let mut first_point = i as i64 * grid.num_points();
            for (level, &(h, w)) in grid.sizes.iter().enumerate() {
                let candidates = candidates(level, image);
                for row in 0..if candidates.is_empty() { 0 } else { h } {
                    for col in 0..w {
                        let gt = self.box_of(grid, level, (col, row), image, &candidates);
                        if let Some(gt) = gt {
                            out.positive.push(first_point + row * w + col);
                            out.gt.push(first_gt + gt as i64);
                        }
                    }
                }
                first_point += h * w;
            }
            out.add_boxes(i, image);
        }
        out
    }

    /// The box that the point of a cell (column, row) of a level is trained on: the smallest
    /// matching box among the `candidates`, the first one if several have the same area.
    fn box_of(
        &self,
        grid: &Grid,
        level: usize,
        (col, row): (i64, i64),
        image: &ImageBoxes,
        candidates: &[usize],
    ) -> Option<usize> {
        let stride = STRIDES[level] as f32;
        let at = |i: i64| (i as f32 + grid.offset as f32) * stride;
        let (x, y) = (at(col), at(row));
        let range = lower(level)..=UPPER[level];
        let mut best: Option<(f32, usize)> = None;
        for &n in candidates {
            let [x1, y1, x2, y2] = image.boxes[n];
            let largest = (x - x1).max(y - y1).max(x2 - x).max(y2 - y);
            if !range.contains(&largest) {
                continue;
            }
            let inside = match self.radius {
                None => (x - x1).min(y - y1).min(x2 - x).min(y2 - y) > 0.0,
                Some(radius) => {
                    let reach = radius as f32 * stride;
                    let (cx, cy) = (f32::midpoint(x1, x2), f32::midpoint(y1, y2));
                    let (left, top) = ((cx - reach).max(x1), (cy - reach).max(y1));
                    let (right, bottom) = ((cx + reach).min(x2), (cy + reach).min(y2));
                    (x - left).min(y - top).min(right - x).min(bottom - y) > 0.0
                }
            };
            let area = (x2 - x1) * (y2 - y1);
            if inside && best.is_none_or(|b| area < b.0) {
                best = Some((area, n));
            }
        }
        best.map(|b| b.1)
    }
}

/// Lower end of the range of a level, pixels; see [`UPPER`].
fn lower(level: usize) -> f32 {
    if level == 0 { -1.0 } else { UPPER[level - 1] }
}

/// Indices of the boxes of an image that can match a point of a level. The largest distance of a
/// point inside a box is between half the longer side of the box and that side; one pixel is added
/// at both ends for rounding.
fn candidates(level: usize, image: &ImageBoxes) -> Vec<usize> {
    let longer = |&[x1, y1, x2, y2]: &[f32; 4]| (x2 - x1).max(y2 - y1);
    let fits = |side: f32| side + 1.0 > lower(level) && side / 2.0 - 1.0 <= UPPER[level];
    (0..image.boxes.len()).filter(|&n| fits(longer(&image.boxes[n]))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::level_sizes;

    #[test]
    fn a_point_gets_the_smallest_box_that_matches_its_level() {
        let grid = Grid::centers(&level_sizes(128, 128));
        let image = |boxes: &[[f32; 4]]| {
            [ImageBoxes { boxes: boxes.to_vec(), labels: vec![0; boxes.len()], padded: None }]
        };
        let plain = SmallestBox { radius: None };
        let sampled = |radius| SmallestBox { radius: Some(radius) };
        // Points of stride 8 are at 4, 12, ...: only 12 is strictly inside a box from 4 to 20. The
        // boxes are too small for other levels.
        let t = plain.point_targets(
            &grid,
            &image(&[[4.0, 4.0, 20.0, 20.0], [8.0, 8.0, 16.0, 16.0], [8.0, 8.0, 16.0, 16.0]]),
        );
        assert_eq!(
            (t.positive, t.gt),
            (vec![16 + 1], vec![1]),
            "the smaller area, and the first of two equal boxes"
        );
        // Both ends of a range are included. In a box with sides of 124 pixels the point (60, 60)
        // of stride 8 is 64 pixels from the far sides, and its neighbours are farther from one of
        // them.
        let t = sampled(RADIUS).point_targets(&grid, &image(&[[0.0, 0.0, 124.0, 124.0]]));
        let level_0: Vec<i64> = t.positive.iter().copied().filter(|p| *p < 256).collect();
        assert_eq!(level_0, [7 * 16 + 7], "64 is in the range of the first level");
        let level_1: Vec<i64> =
            t.positive.iter().copied().filter(|p| (256..320).contains(p)).collect();
        let around: Vec<i64> =
            (2..5).flat_map(|row| (2..5).map(move |col| 256 + 8 * row + col)).collect();
        assert_eq!(level_1, around, "40, 56 and 72 are within 1.5 strides of 62");
        let t = sampled(0.5).point_targets(&grid, &image(&[[0.0, 0.0, 124.0, 124.0]]));
        assert_eq!(
            t.positive.iter().filter(|p| (256..320).contains(*p)).count(),
            1,
            "within half a stride"
        );
    }
}
