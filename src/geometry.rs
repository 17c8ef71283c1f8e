//! Anchor points, distances <-> boxes, IoU and GIoU. Boxes are `[x1, y1, x2, y2]` in pixels of the network input.

use tch::{Device, Kind, Tensor};

/// Strides of the levels P3 to P7, pixels.
pub const STRIDES: [i64; 5] = [8, 16, 32, 64, 128];

/// Sizes `(h, w)` of the five levels for an input of `height` x `width` pixels.
pub fn level_sizes(height: i64, width: i64) -> [(i64, i64); 5] {
    STRIDES.map(|s| ((height + s - 1) / s, (width + s - 1) / s))
}

/// Where the anchor points of an image lie: level by level, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    /// `(h, w)` of each level.
    pub sizes: Vec<(i64, i64)>,
    /// Place of a point in its cell: 0.5 is the cell's centre, 0 its upper left corner.
    pub offset: f64,
}

impl Grid {
    /// Points at the centres of the cells, `(i + 0.5) * stride`.
    pub fn centers(sizes: &[(i64, i64)]) -> Self {
        Self { sizes: sizes.to_vec(), offset: 0.5 }
    }

    /// Number of points of an image, P.
    pub fn num_points(&self) -> i64 {
        self.sizes.iter().map(|(h, w)| h * w).sum()
    }

    /// Coordinates (x, y) of all points in pixels, `[P, 2]`.
    pub fn points(&self, kind: Kind, device: Device) -> Tensor {
        let levels = self.sizes.iter().zip(&STRIDES);
        let levels: Vec<Tensor> =
            levels.map(|(&(h, w), &s)| level_points(h, w, s, self.offset, kind, device)).collect();
        Tensor::cat(&levels, 0)
    }
}

/// Points of one level, `[h * w, 2]`.
pub fn level_points(
    h: i64,
    w: i64,
    stride: i64,
    offset: f64,
    kind: Kind,
    device: Device,
) -> Tensor {
    let axis = |n: i64| (Tensor::arange(n, (kind, device)) + offset) * stride as f64;
    let (y, x) = (axis(h), axis(w));
    let grid = [x.unsqueeze(0).expand([h, w], false), y.unsqueeze(1).expand([h, w], false)];
    Tensor::stack(&grid, 2).reshape([h * w, 2])
}

/// `[.., 2]` points and `[.., 4]` distances (l, t, r, b) to `[.., 4]` boxes.
pub fn decode(xy: &Tensor, distances: &Tensor) -> Tensor {
    let low = xy - distances.narrow(-1, 0, 2);
    let high = xy + distances.narrow(-1, 2, 2);
    Tensor::cat(&[low, high], -1)
}

/// `[.., 2]` points and `[.., 4]` boxes to `[.., 4]` distances (l, t, r, b), negative where the point is outside.
pub fn encode(xy: &Tensor, boxes: &Tensor) -> Tensor {
    let low = xy - boxes.narrow(-1, 0, 2);
    let high = boxes.narrow(-1, 2, 2) - xy;
    Tensor::cat(&[low, high], -1)
}

/// Intersection over union and GIoU, each `[N]`, of pairs of boxes given by their distances (l, t, r, b) `[4, N]` from a
/// point inside both; areas in denominators are at least `eps`.
///
/// Sides come first so that each is contiguous, no box is decoded, and the hull's size follows from the others' (from the
/// larger side of each pair, which is the sum of both less the smaller): with a million pairs every operation counts.
pub fn iou_and_giou(a: &Tensor, b: &Tensor, eps: f64) -> (Tensor, Tensor) {
    // (l + r, t + b).
    let size = |d: &Tensor| d.view([2, 2, -1]).sum_dim_intlist(0, false, None);
    let area = |size: &Tensor| {
        let sides = size.unbind(0);
        &sides[0] * &sides[1]
    };
    let (size_a, size_b, size_overlap) = (size(a), size(b), size(&a.minimum(b)));
    let overlap = area(&size_overlap);
    let union = (area(&size_a) + area(&size_b) - &overlap).clamp_min(eps);
    let iou = overlap / &union;
    let hull = area(&(size_a + size_b - size_overlap)).clamp_min(eps);
    // IoU - (hull - union) / hull, with one operation less.
    let giou = &iou - 1.0 + union / hull;
    (iou, giou)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vec(t: &Tensor) -> Vec<f64> {
        Vec::try_from(t.to_kind(Kind::Double).flatten(0, -1)).unwrap()
    }

    #[test]
    fn points_lie_in_the_middle_of_their_cells() {
        let grid = Grid::centers(&level_sizes(64, 96));
        let p = grid.points(Kind::Double, Device::Cpu);
        assert_eq!(p.size(), [8 * 12 + 4 * 6 + 2 * 3 + 2 + 1, 2]);
        assert_eq!(grid.num_points(), p.size()[0]);
        assert_eq!(vec(&p.get(1)), [12.0, 4.0]);
        assert_eq!(vec(&p.get(8 * 12 + 6)), [8.0, 24.0]);
        let corners = Grid { offset: 0.0, ..grid }.points(Kind::Double, Device::Cpu);
        assert_eq!(vec(&corners.get(1)), [8.0, 0.0]);
    }

    #[test]
    fn decode_undoes_encode() {
        let xy = Tensor::from_slice(&[10.0, 20.0]).view([1, 2]);
        let b = Tensor::from_slice(&[4.0, 5.0, 30.0, 50.0]).view([1, 4]);
        assert_eq!(vec(&encode(&xy, &b)), [6.0, 15.0, 20.0, 30.0]);
        assert_eq!(vec(&decode(&xy, &encode(&xy, &b))), vec(&b));
    }

    #[test]
    fn iou_of_known_pairs() {
        // Around (1, 1): a 2 x 2 box and one moved by half of it; around (0, 0): boxes that touch in a corner.
        let a = Tensor::from_slice(&[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
            .view([2, 4])
            .tr()
            .contiguous();
        let b = Tensor::from_slice(&[0.0, 0.0, 2.0, 2.0, 0.0, 0.0, 2.0, 1.0])
            .view([2, 4])
            .tr()
            .contiguous();
        let (iou, giou) = iou_and_giou(&a, &b, 1e-6);
        assert_eq!(vec(&iou), [1. / 7., 0.]);
        assert!((vec(&giou)[0] - (1. / 7. - 2. / 9.)).abs() < 1e-12);
        assert!(
            (vec(&giou)[1] + 0.5).abs() < 1e-12,
            "no overlap: minus the empty half of the hull"
        );
    }
}
