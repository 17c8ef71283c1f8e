//! A criterion for hard assigners: focal loss, box loss weighted by centre-ness, and centre-ness
//! loss, as in FCOS (Tian et al., ICCV 2019, Sec. 3), ATSS, and their implementation in
//! mmdetection.
//!
//! Shapes: B images, P points over all levels, C classes, G boxes of the batch, N positive points.

use tch::{Kind, Tensor};

use super::positives::{Count, Positives, centerness};
use super::{Criterion, Probe, Progress, Targets};
use crate::loss::functions::{bce_with_logits, focal};
use crate::loss::{Normaliser, Term};
use crate::model::Predictions;

const FOCAL_ALPHA: f64 = 0.25;
const FOCAL_GAMMA: f64 = 2.0;
/// Lower bound of the IoU before its logarithm is taken.
const EPS: f64 = 1e-6;

/// Focal loss over all points except the ignored ones; over the positive points, box loss weighted
/// by centre-ness, and centre-ness loss.
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
    /// Added to the sum of centre-ness after the bound is applied.
    pub plus: f64,
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
    /// The probe records `label`: the class of each point `[B * P]`, C for background.
    fn terms(
        &self,
        predicted: &Predictions,
        targets: &Targets,
        _: &Progress,
        probe: &mut dyn Probe,
    ) -> Vec<Term> {
        let positive = Positives::new(predicted, targets);
        let (t, cls_bpc) = (positive.targets, &predicted.cls);
        let num_rows = cls_bpc.size()[0] * cls_bpc.size()[1];
        let ones_n = positive.labels.ones_like().to_kind(cls_bpc.kind());
        let one_hot = positive.class_targets(cls_bpc, &ones_n);
        let invalid = predicted.nan_if_invalid();
        let focal_bpc = focal(cls_bpc, &one_hot, FOCAL_ALPHA, FOCAL_GAMMA);
        let loss_cls = t.without_ignored(focal_bpc).sum(None) + invalid;
        let mut label = Tensor::full([num_rows], self.classes, (Kind::Int64, cls_bpc.device()));
        probe.record("label", &label.index_copy_(0, &t.positive, &positive.labels));

        let center_n = centerness(&positive.target);
        let (iou_n, giou_n) = positive.iou_and_giou();
        let box_loss_n = match self.bbox.loss {
            BoxLoss::Giou => -(giou_n - 1.0),
            BoxLoss::LogIou => -iou_n.clamp_min(EPS).log(),
        };
        let loss_bbox = (box_loss_n * &center_n).sum(None) * self.bbox.weight;
        let quality_n = predicted.quality().reshape([-1]).index_select(0, &t.positive);
        let loss_center = bce_with_logits(&quality_n, &center_n).sum(None);

        let by_count = || positive.by_count(self.count, predicted);
        let by_center = Normaliser {
            value: center_n.sum(None),
            floor: self.bbox.floor,
            at_least: 0.0,
            plus: self.bbox.plus,
        };
        let term = |name, sum, by, needs_positives| Term { name, sum, by, needs_positives };
        vec![
            term("loss_cls", loss_cls, by_count(), false),
            term("loss_bbox", loss_bbox, by_center, true),
            term("loss_centerness", loss_center, by_count(), true),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Grid;

    #[test]
    fn nan_in_any_prediction_makes_the_loss_nan() {
        let (grid, options) = (Grid::centers(&[(2, 2)]), (Kind::Float, tch::Device::Cpu));
        let targets = crate::assign::PointTargets {
            boxes: vec![[0.0, 0.0, 9.0, 9.0]],
            labels: vec![1],
            image: vec![0],
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
            let quality = Some(tensor(2, 1).squeeze_dim(-1));
            let predicted = Predictions {
                cls: tensor(0, 2),
                distances: tensor(1, 4),
                quality,
                cls_is: crate::model::ClassOutput::Logit,
                first: None,
                bins: None,
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
