//! A criterion for hard assigners: focal loss, box loss weighted by centre-ness, and centre-ness,
//! as in FCOS (Tian et al., ICCV 2019, Sec. 3), ATSS, and their implementation in mmdetection.
//!
//! Shapes: B images, P points over all levels, C classes, G boxes of the batch, N positive points.

use tch::{Kind, Tensor};

use super::{Criterion, PointTensors, Probe, Progress, Targets};
use crate::geometry::{Grid, iou_and_giou_of_any};
use crate::loss::functions::{bce_with_logits, focal};
use crate::loss::{Normaliser, Term};
use crate::model::Predictions;

const FOCAL_ALPHA: f64 = 0.25;
const FOCAL_GAMMA: f64 = 2.0;
/// Lower bound of areas used as denominators and of the IoU in its logarithm.
const EPS: f64 = 1e-6;
/// mmdetection adds the f32 epsilon to the denominators.
pub const F32_EPSILON: f64 = f32::EPSILON as f64;

/// Focal loss over all points but the ignored ones; box loss, weighted by centre-ness, and centre-ness over the positive
/// ones.
pub struct FocalAndCenterness {
    /// The box loss and its normaliser.
    pub bbox: BoxTerm,
    /// The normaliser of the other two terms.
    pub count: Count,
    /// Number of classes, C.
    pub classes: i64,
}

/// The term of the box loss: the sum over the positive points, weighted by centre-ness, divided by
/// the sum of centre-ness.
#[derive(Debug, Clone, Copy)]
pub struct BoxTerm {
    /// Loss of a predicted box.
    pub loss: BoxLoss,
    /// Factor of the term.
    pub weight: f64,
    /// Lower bound of the sum of centre-ness.
    pub floor: f64,
    /// Added to it after the bound is applied.
    pub plus: f64,
}

/// What counts the positive points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// The number of positive points.
    Positives,
    /// The same, where an image without positive points counts as one (ATSS).
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

/// Loss of a predicted box with respect to its ground truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BoxLoss {
    /// 1 - GIoU.
    Giou,
    /// -ln IoU.
    LogIou,
}

impl Criterion for FocalAndCenterness {
    /// The probe records `label`: the class of each point `[B P]`, C for background.
    fn terms(
        &self,
        predicted: &Predictions,
        targets: &Targets,
        _: &Progress,
        probe: &mut dyn Probe,
    ) -> Vec<Term> {
        let t = targets.points();
        let cls_bpc = &predicted.cls;
        let num_rows = cls_bpc.size()[0] * cls_bpc.size()[1];
        let labels_n = t.labels.index_select(0, &t.gt);
        let logit_index_n = &t.positive * self.classes + &labels_n;
        let one_hot = Tensor::zeros([num_rows * self.classes], (cls_bpc.kind(), cls_bpc.device()))
            .index_fill_(0, &logit_index_n, 1.0);
        // 0, or NaN if any prediction is not finite: below, distances and quality are read at the
        // positive points only.
        let nan_if_invalid = (predicted.distances.detach() * 0.0).sum(None)
            + (predicted.quality.detach() * 0.0).sum(None);
        let focal_bpc = focal(cls_bpc, &one_hot.view_as(cls_bpc), FOCAL_ALPHA, FOCAL_GAMMA);
        let loss_cls = t.without_ignored(focal_bpc).sum(None) + nan_if_invalid;
        let mut label = Tensor::full([num_rows], self.classes, (Kind::Int64, cls_bpc.device()));
        probe.record("label", &label.index_copy_(0, &t.positive, &labels_n));

        let target_4n = distances(t, &predicted.grid);
        let found_4n = predicted.distances.reshape([-1, 4]).index_select(0, &t.positive).tr();
        let center_n = centerness(&target_4n);
        let (iou_n, giou_n) = iou_and_giou_of_any(&found_4n, &target_4n, EPS);
        let box_loss_n = match self.bbox.loss {
            BoxLoss::Giou => -(giou_n - 1.0),
            BoxLoss::LogIou => -iou_n.clamp_min(EPS).log(),
        };
        let loss_bbox = (box_loss_n * &center_n).sum(None) * self.bbox.weight;
        let quality_n = predicted.quality.reshape([-1]).index_select(0, &t.positive);
        let loss_center = bce_with_logits(&quality_n, &center_n).sum(None);

        let count = self.count.of(t, cls_bpc.size()[0], cls_bpc.size()[1], center_n.kind());
        let by_count =
            || Normaliser { value: count.shallow_clone(), floor: 1.0, plus: F32_EPSILON };
        let by_center =
            Normaliser { value: center_n.sum(None), floor: self.bbox.floor, plus: self.bbox.plus };
        let term = |name, sum, by, needs_positives| Term { name, sum, by, needs_positives };
        vec![
            term("loss_cls", loss_cls, by_count(), false),
            term("loss_bbox", loss_bbox, by_center, true),
            term("loss_centerness", loss_center, by_count(), true),
        ]
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
fn centerness(ltrb_4n: &Tensor) -> Tensor {
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

    #[test]
    fn nan_in_any_prediction_makes_the_loss_nan() {
        let (grid, options) = (Grid::centers(&[(2, 2)]), (Kind::Float, tch::Device::Cpu));
        let targets = crate::assign::PointTargets {
            boxes: vec![[0.0, 0.0, 9.0, 9.0]],
            labels: vec![1],
            positive: vec![0],
            gt: vec![0],
            ignored: vec![1],
        };
        let targets = Targets::Points(targets.tensors());
        let bbox = BoxTerm { loss: BoxLoss::Giou, weight: 1.0, floor: 1.0, plus: 0.0 };
        let criterion = FocalAndCenterness { bbox, count: Count::Positives, classes: 2 };
        let sum = |which: usize, point: i64, value: f64| {
            let tensor = |n: usize, last: i64| {
                let t = Tensor::ones([1, 4, last], options);
                let _ = t.get(0).get(point).fill_(if n == which { value } else { 1.0 });
                t
            };
            let quality = tensor(2, 1).squeeze_dim(-1);
            let predicted = Predictions {
                cls: tensor(0, 2),
                distances: tensor(1, 4),
                quality,
                grid: grid.clone(),
            };
            let terms = criterion.terms(&predicted, &targets, &Progress::default(), &mut ());
            terms.iter().map(|t| t.sum.double_value(&[])).sum::<f64>()
        };
        for (which, point) in [(0, 0), (0, 1), (0, 3), (1, 0), (1, 3), (2, 0), (2, 3)] {
            assert!(sum(which, point, f64::NAN).is_nan(), "input {which}, point {point}");
            assert!(sum(which, point, 2.0).is_finite());
        }
    }
}
