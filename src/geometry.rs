//! Anchor points, conversion between distances and boxes, IoU and GIoU.
//!
//! Boxes are `[x1, y1, x2, y2]` and distances `(l, t, r, b)` from a point to the sides of a box,
//! both in pixels of the network input. Box sizes are `x2 - x1` and `y2 - y1`.

use tch::{Device, Kind, Tensor};

/// Strides of the feature levels P3 to P7, pixels.
pub const STRIDES: [i64; 5] = [8, 16, 32, 64, 128];

/// Sizes `(h, w)` of the five levels in cells, for an input of `height` x `width` pixels.
///
/// ```
/// use dw::geometry::level_sizes;
///
/// assert_eq!(level_sizes(96, 160), [(12, 20), (6, 10), (3, 5), (2, 3), (1, 2)]);
/// ```
pub fn level_sizes(height: i64, width: i64) -> [(i64, i64); 5] {
    STRIDES.map(|s| ((height + s - 1) / s, (width + s - 1) / s))
}

/// The anchor points of an image: one in each cell of every level, ordered by level, row and
/// column.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    /// Size `(h, w)` of each level, cells.
    pub sizes: Vec<(i64, i64)>,
    /// Position of the points within their cells, as a fraction of the stride: 0.5 is the cell's
    /// centre, 0 its upper left corner.
    pub offset: f64,
}

impl Grid {
    /// Points at the centres of the cells, `(i + 0.5) * stride`.
    ///
    /// ```
    /// use dw::geometry::Grid;
    /// use tch::{Device, Kind};
    ///
    /// // Levels of strides 8 and 16.
    /// let grid = Grid::centers(&[(1, 2), (1, 1)]);
    /// assert_eq!(grid.num_points(), 3);
    /// let xy = Vec::<Vec<f64>>::try_from(grid.points(Kind::Double, Device::Cpu)).unwrap();
    /// assert_eq!(xy, [[4.0, 4.0], [12.0, 4.0], [8.0, 8.0]]);
    /// ```
    pub fn centers(sizes: &[(i64, i64)]) -> Self {
        Self { sizes: sizes.to_vec(), offset: 0.5 }
    }

    /// Number of points of one image over all levels, P.
    pub fn num_points(&self) -> i64 {
        self.sizes.iter().map(|(h, w)| h * w).sum()
    }

    /// Level of each point, from 0, `[P]`, i64.
    pub fn levels(&self, device: Device) -> Tensor {
        let level = |(i, &(h, w)): (usize, &(i64, i64))| {
            Tensor::full([h * w], i as i64, (Kind::Int64, device))
        };
        let levels: Vec<Tensor> = self.sizes.iter().enumerate().map(level).collect();
        Tensor::cat(&levels, 0)
    }

    /// Stride of the level of each point, `[P]`, pixels.
    pub fn strides(&self, kind: Kind, device: Device) -> Tensor {
        let level =
            |(&(h, w), &s): (&(i64, i64), &i64)| Tensor::full([h * w], s as f64, (kind, device));
        let levels: Vec<Tensor> = self.sizes.iter().zip(&STRIDES).map(level).collect();
        Tensor::cat(&levels, 0)
    }

    /// Coordinates (x, y) of all points, `[P, 2]`, pixels.
    pub fn points(&self, kind: Kind, device: Device) -> Tensor {
        let levels = self.sizes.iter().zip(&STRIDES);
        let levels: Vec<Tensor> =
            levels.map(|(&(h, w), &s)| level_points(h, w, s, self.offset, kind, device)).collect();
        Tensor::cat(&levels, 0)
    }
}

/// Coordinates (x, y) of the points of one level, `[h * w, 2]`, pixels. See [`Grid::offset`] for
/// `offset`.
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

/// Converts points `[.., 2]` and distances (l, t, r, b) `[.., 4]` to boxes `[.., 4]`.
///
/// ```
/// use dw::geometry::decode;
/// use tch::Tensor;
///
/// let xy = Tensor::from_slice(&[10.0, 20.0]);
/// let ltrb = Tensor::from_slice(&[1.0, 2.0, 3.0, 4.0]);
/// let boxes = Vec::<f64>::try_from(decode(&xy, &ltrb)).unwrap();
/// assert_eq!(boxes, [9.0, 18.0, 13.0, 24.0]);
/// ```
pub fn decode(xy: &Tensor, distances: &Tensor) -> Tensor {
    let low = xy - distances.narrow(-1, 0, 2);
    let high = xy + distances.narrow(-1, 2, 2);
    Tensor::cat(&[low, high], -1)
}

/// Converts points `[.., 2]` and boxes `[.., 4]` to distances (l, t, r, b) `[.., 4]`, the inverse
/// of [`decode`]. The distance from a side is negative if the point lies beyond that side.
///
/// ```
/// use dw::geometry::encode;
/// use tch::Tensor;
///
/// let xy = Tensor::from_slice(&[10.0, 20.0]);
/// let boxes = Tensor::from_slice(&[9.0, 18.0, 13.0, 19.0]);
/// let ltrb = Vec::<f64>::try_from(encode(&xy, &boxes)).unwrap();
/// assert_eq!(ltrb, [1.0, 2.0, 3.0, -1.0]);
/// ```
pub fn encode(xy: &Tensor, boxes: &Tensor) -> Tensor {
    let low = xy - boxes.narrow(-1, 0, 2);
    let high = boxes.narrow(-1, 2, 2) - xy;
    Tensor::cat(&[low, high], -1)
}

/// Side of the square anchor around each point in units of its stride (ATSS and its successors).
pub const ANCHOR_STRIDES: f64 = 8.0;

/// Standard deviations by which a head's box deltas are multiplied: of the centre, and of the
/// logarithm of the size.
pub(crate) const DELTA_STD: (f64, f64) = (0.1, 0.2);

/// Upper bound of the absolute value of `ln(size / anchor size)`.
pub(crate) fn most_log_size() -> f64 {
    (1000.0f64 / 16.0).ln()
}

/// Converts deltas (dx, dy, dw, dh) `[B, 4, h, w]` with respect to the square anchors of a level of
/// `stride` pixels to distances (l, t, r, b) `[B, 4, h, w]`, pixels. A distance is negative if the
/// point lies beyond that side of the box. A size is at most 1000 / 16 and at least 16 / 1000 times
/// the anchor's, as in mmdetection's `DeltaXYWHBBoxCoder`.
///
/// ```
/// use dw::geometry::distances_of_deltas;
/// use tch::Tensor;
///
/// // An anchor of 64 x 64 pixels, moved 0.1 x 64 pixels to the right.
/// let deltas = Tensor::from_slice(&[1.0, 0.0, 0.0, 0.0]).view([1, 4, 1, 1]);
/// let ltrb = Vec::<f64>::try_from(distances_of_deltas(&deltas, 8).reshape([4])).unwrap();
/// assert_eq!(ltrb, [32.0 - 6.4, 32.0, 32.0 + 6.4, 32.0]);
/// ```
pub fn distances_of_deltas(deltas: &Tensor, stride: i64) -> Tensor {
    let side = ANCHOR_STRIDES * stride as f64;
    let most = most_log_size();
    let shift = deltas.narrow(1, 0, 2) * (DELTA_STD.0 * side);
    let log_size = (deltas.narrow(1, 2, 2) * DELTA_STD.1).clamp(-most, most);
    let half = log_size.exp() * (side / 2.0);
    Tensor::cat(&[&half - &shift, half + shift], 1)
}

/// Number of bins of the distribution of a distance; their values are 0, 1, .., 16 strides (GFL; Li
/// et al., NeurIPS 2020, Sec. 3.2).
pub const BINS: i64 = 17;

/// Converts logits of distributions `[B, 4 * BINS, h, w]`, one for each of (l, t, r, b) on a level
/// of `stride` pixels, to their means `[B, 4, h, w]`, pixels.
///
/// ```
/// use dw::geometry::{BINS, distances_of_bins};
/// use tch::{Device, Kind, Tensor};
///
/// // All 17 values are equally probable.
/// let logits = Tensor::zeros([1, 4 * BINS, 1, 1], (Kind::Double, Device::Cpu));
/// let ltrb = Vec::<f64>::try_from(distances_of_bins(&logits, 8).reshape([4])).unwrap();
/// assert!(ltrb.iter().all(|d| (d - 8.0 * 8.0).abs() < 1e-12));
/// ```
pub fn distances_of_bins(logits: &Tensor, stride: i64) -> Tensor {
    let (b, h, w) = (logits.size()[0], logits.size()[2], logits.size()[3]);
    let p = logits.contiguous().view([b, 4, BINS, h, w]).softmax(2, None);
    let value = Tensor::arange(BINS, (logits.kind(), logits.device())) * stride as f64;
    (p * value.view([1, 1, BINS, 1, 1])).sum_dim_intlist(2, false, None)
}

/// IoU and GIoU (Rezatofighi et al., CVPR 2019), each `[N]`, of pairs of boxes given by their
/// distances (l, t, r, b) from a common point, `[4, N]`; a distance is negative for a side that the
/// point lies beyond. Areas used as denominators are at least `eps`.
///
/// With the sides in the first dimension each side is contiguous, and no box has to be decoded. On
/// each side the enclosing box has the larger of the two distances, which is their sum minus the
/// smaller one, so its size follows from the three sizes already computed. Batches have up to a
/// million pairs, so the number of tensor operations matters.
///
/// ```
/// use dw::geometry::iou_and_giou;
/// use tch::Tensor;
///
/// let boxes = |all: [[f64; 4]; 2]| Tensor::from_slice2(&all).tr();
/// // A 2 x 2 and a 4 x 2 box around the point: the intersection is 4 square pixels, the union 8,
/// // and the enclosing box is the larger box. Then boxes that do not overlap: the first extends
/// // from -4 to -2 along x, the second from -1 to 1, and both are 2 high, as is their hull.
/// let a = boxes([[1.0, 1.0, 1.0, 1.0], [4.0, 1.0, -2.0, 1.0]]);
/// let b = boxes([[1.0, 1.0, 3.0, 1.0], [1.0, 1.0, 1.0, 1.0]]);
/// let (iou, giou) = iou_and_giou(&a, &b, 1e-6);
/// assert_eq!((iou.double_value(&[0]), giou.double_value(&[0])), (0.5, 0.5));
/// assert_eq!(iou.double_value(&[1]), 0.0);
/// assert!((giou.double_value(&[1]) + 0.2).abs() < 1e-12);
/// ```
pub fn iou_and_giou(a: &Tensor, b: &Tensor, eps: f64) -> (Tensor, Tensor) {
    // Width l + r and height t + b, `[2, N]`.
    let size = |ltrb_4n: &Tensor| ltrb_4n.view([2, 2, -1]).sum_dim_intlist(0, false, None);
    let area = |size_2n: &Tensor| {
        let sides = size_2n.unbind(0);
        &sides[0] * &sides[1]
    };
    let (size_a, size_b, size_overlap) = (size(a), size(b), size(&a.minimum(b)));
    // The sides are negative for boxes that do not overlap.
    let overlap = area(&size_overlap.clamp_min(0.0));
    let union = (area(&size_a) + area(&size_b) - &overlap).clamp_min(eps);
    let iou = overlap / &union;
    let hull = area(&(size_a + size_b - size_overlap)).clamp_min(eps);
    // IoU - (hull - union) / hull, with one operation fewer.
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
    fn points_are_at_the_offset_within_their_cells() {
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
    fn decode_is_the_inverse_of_encode() {
        let xy = Tensor::from_slice(&[10.0, 20.0]).view([1, 2]);
        let b = Tensor::from_slice(&[4.0, 5.0, 30.0, 50.0]).view([1, 4]);
        assert_eq!(vec(&encode(&xy, &b)), [6.0, 15.0, 20.0, 30.0]);
        assert_eq!(vec(&decode(&xy, &encode(&xy, &b))), vec(&b));
    }

    #[test]
    fn iou_and_giou_of_known_pairs() {
        // Pair 0: a 2 x 2 box, and the same box shifted by 1 along both axes; the point is (1, 1).
        // Pair 1: a 2 x 2 and a 2 x 1 box that share only a corner, which is the point.
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
            "without overlap, GIoU is minus the uncovered share of the hull"
        );
    }
}
