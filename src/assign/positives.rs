//! Predictions and targets at the positive points, as the criteria of hard assigners read them.
//!
//! Shapes: B images, P points over all levels, C classes, N positive points.

use tch::{Kind, Tensor};

use super::{PointTensors, Targets};
use crate::geometry::{Grid, iou_and_giou};
use crate::loss::Normaliser;
use crate::model::Predictions;

/// Lower bound of areas used as denominators.
pub const AREA_EPS: f64 = 1e-6;
/// Added to denominators, as in mmdetection.
pub const F32_EPSILON: f64 = f32::EPSILON as f64;

/// The positive points of a batch.
#[derive(Debug)]
pub struct Positives<'a> {
    /// The targets.
    pub targets: &'a PointTensors,
    /// Class of the box of each point `[N]`.
    pub labels: Tensor,
    /// Distances (l, t, r, b) to the sides of the box `[4, N]`, pixels.
    pub target: Tensor,
    /// Distances of the predicted box `[4, N]`, pixels.
    pub found: Tensor,
    /// Position of each point's class in the class logits `[B, P, C]`, `[N]`.
    logit: Tensor,
}

impl<'a> Positives<'a> {
    /// Reads the predictions at the positive points.
    pub fn new(predicted: &Predictions, targets: &'a Targets) -> Self {
        let targets = targets.points();
        let labels = targets.labels.index_select(0, &targets.gt);
        let logit = &targets.positive * predicted.cls.size()[2] + &labels;
        let target = distances(targets, &predicted.grid);
        let found = predicted.distances.reshape([-1, 4]).index_select(0, &targets.positive).tr();
        Self { targets, labels, target, found, logit }
    }

    /// Targets `[B, P, C]` of the class scores `cls_bpc`: `value_n` at the class of each positive
    /// point, 0 elsewhere.
    pub fn class_targets(&self, cls_bpc: &Tensor, value_n: &Tensor) -> Tensor {
        let options = (cls_bpc.kind(), cls_bpc.device());
        let zeros = Tensor::zeros([cls_bpc.numel() as i64], options);
        zeros.index_copy(0, &self.logit, value_n).view_as(cls_bpc)
    }

    /// IoU and GIoU of predicted and ground-truth boxes, `[N]`.
    pub fn iou_and_giou(&self) -> (Tensor, Tensor) {
        iou_and_giou(&self.found, &self.target, AREA_EPS)
    }

    /// The same for other predicted distances `[B, P, 4]`, pixels.
    pub fn iou_and_giou_of(&self, distances_bp4: &Tensor) -> (Tensor, Tensor) {
        iou_and_giou(&self.rows(distances_bp4).tr(), &self.target, AREA_EPS)
    }

    /// Rows of `values_bpk` `[B, P, K]` at the positive points, `[N, K]`.
    pub fn rows(&self, values_bpk: &Tensor) -> Tensor {
        values_bpk.flatten(0, 1).index_select(0, &self.targets.positive)
    }

    /// A normaliser: the count of positive points, at least 1.
    pub fn by_count(&self, count: Count, predicted: &Predictions) -> Normaliser {
        let [batch, num_points] = [0, 1].map(|dim| predicted.cls.size()[dim]);
        let value = count.of(self.targets, batch, num_points, predicted.cls.kind());
        Normaliser { value, floor: 1.0, at_least: 0.0, plus: F32_EPSILON }
    }
}

/// How the positive points are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// The number of positive points.
    Positives,
    /// The number of positive points, counted as 1 for an image without positive points (ATSS).
    AtLeastOneAnImage,
}

impl Count {
    /// The count over this rank's `batch` images of `num_points` points each, a scalar of `kind`.
    fn of(self, t: &PointTensors, batch: i64, num_points: i64, kind: Kind) -> Tensor {
        let options = (kind, t.positive.device());
        let ones_n = Tensor::ones(t.positive.size(), options);
        match self {
            Self::Positives => ones_n.sum(None),
            Self::AtLeastOneAnImage => {
                let image_n = t.positive.divide_scalar_mode(num_points, "floor");
                let count_b = Tensor::zeros([batch], options).index_add(0, &image_n, &ones_n);
                count_b.clamp_min(1.0).sum(None)
            }
        }
    }
}

/// Distances (l, t, r, b) from each positive point to the sides of its box, `[4, N]`, pixels.
fn distances(t: &PointTensors, grid: &Grid) -> Tensor {
    let points_p2 = grid.points(t.boxes.kind(), t.boxes.device());
    let xy_2n = points_p2.index_select(0, &t.positive.remainder(grid.num_points())).tr();
    let boxes_4n = t.boxes.index_select(0, &t.gt).tr();
    let (low, high) = (&xy_2n - boxes_4n.narrow(0, 0, 2), boxes_4n.narrow(0, 2, 2) - &xy_2n);
    Tensor::cat(&[low, high], 0)
}

/// Centre-ness `[N]` of distances (l, t, r, b) `[4, N]` (FCOS, Eq. 3), 1 at the centre of a box and
/// 0 at its sides.
pub fn centerness(ltrb_4n: &Tensor) -> Tensor {
    let [l, t, r, b] = [0, 1, 2, 3].map(|side| ltrb_4n.get(side));
    ((l.minimum(&r) / l.maximum(&r)) * (t.minimum(&b) / t.maximum(&b))).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn centerness_equals_the_formula() {
        let d = Tensor::from_slice(&[1.0f64, 4.0, 2.0, 2.0, 4.0, 4.0, 2.0, 2.0]).view([4, 2]);
        let found: Vec<f64> = centerness(&d).try_into().unwrap();
        assert_eq!(found, [0.5, 1.0]);
    }
}
