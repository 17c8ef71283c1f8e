//! A criterion for hard assigners: focal loss, a box loss weighted by centre-ness, and centre-ness itself, as FCOS (Tian et
//! al., ICCV 2019, Sec. 3) has it in mmdetection.

use tch::{Kind, Tensor};

use super::{Criterion, PointTensors, Probe, Progress, Targets};
use crate::geometry::{Grid, iou_and_giou};
use crate::loss::functions::{bce_with_logits, focal};
use crate::loss::{Normaliser, Term};
use crate::model::Predictions;

const FOCAL_ALPHA: f64 = 0.25;
const FOCAL_GAMMA: f64 = 2.0;
/// Floor of areas in denominators, of the IoU in its logarithm, and of the sum of centre-ness.
const EPS: f64 = 1e-6;
/// mmdetection adds the f32 epsilon to what it divides by.
const F32_EPSILON: f64 = f32::EPSILON as f64;

/// Focal loss over all points, box loss of the positive ones weighted by their centre-ness, and centre-ness itself.
pub struct FocalAndCenterness {
    /// Loss of a box.
    pub box_loss: BoxLoss,
    /// Classes.
    pub classes: i64,
}

/// Loss of a predicted box against its ground truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BoxLoss {
    /// 1 - GIoU.
    Giou,
    /// -ln IoU.
    LogIou,
}

impl Criterion for FocalAndCenterness {
    /// The probe sees `label`, the class of each point `[B, P]`, C for background.
    fn terms(
        &self,
        predicted: &Predictions,
        targets: &Targets,
        _: &Progress,
        probe: &mut dyn Probe,
    ) -> Vec<Term> {
        let t = targets.points();
        let cls = &predicted.cls;
        let rows = cls.size()[0] * cls.size()[1];
        let labels = t.labels.index_select(0, &t.gt);
        let index = &t.positive * self.classes + &labels;
        let one_hot = Tensor::zeros([rows * self.classes], (cls.kind(), cls.device()))
            .index_fill_(0, &index, 1.0);
        // Only positive points are looked up below: what is not finite elsewhere comes out here.
        let poison = (predicted.distances.detach() * 0.0).sum(None)
            + (predicted.quality.detach() * 0.0).sum(None);
        let loss_cls =
            focal(cls, &one_hot.view_as(cls), FOCAL_ALPHA, FOCAL_GAMMA).sum(None) + poison;
        let mut label = Tensor::full([rows], self.classes, (Kind::Int64, cls.device()));
        probe.see("label", &label.index_copy_(0, &t.positive, &labels));

        let target = distances(t, &predicted.grid);
        let found = predicted.distances.reshape([-1, 4]).index_select(0, &t.positive).tr();
        let center = centerness(&target);
        let (iou, giou) = iou_and_giou(&found, &target, EPS);
        let box_loss = match self.box_loss {
            BoxLoss::Giou => -(giou - 1.0),
            BoxLoss::LogIou => -iou.clamp_min(EPS).log(),
        };
        let loss_bbox = (box_loss * &center).sum(None);
        let quality = predicted.quality.reshape([-1]).index_select(0, &t.positive);
        let loss_center = bce_with_logits(&quality, &center).sum(None);

        let count = Tensor::ones_like(&center).sum(None);
        let by_count =
            || Normaliser { value: count.shallow_clone(), floor: 1.0, plus: F32_EPSILON };
        let by_center = Normaliser { value: center.sum(None), floor: EPS, plus: F32_EPSILON };
        vec![
            Term { name: "loss_cls", sum: loss_cls, by: by_count(), needs_positives: false },
            Term { name: "loss_bbox", sum: loss_bbox, by: by_center, needs_positives: true },
            Term {
                name: "loss_centerness",
                sum: loss_center,
                by: by_count(),
                needs_positives: true,
            },
        ]
    }
}

/// Distances (l, t, r, b) of each positive point from its box's sides, `[4, N]`, pixels.
fn distances(t: &PointTensors, grid: &Grid) -> Tensor {
    let points = grid.points(t.boxes.kind(), t.boxes.device());
    let xy = points.index_select(0, &t.positive.remainder(grid.num_points())).tr();
    let boxes = t.boxes.index_select(0, &t.gt).tr();
    let (low, high) = (&xy - boxes.narrow(0, 0, 2), boxes.narrow(0, 2, 2) - &xy);
    Tensor::cat(&[low, high], 0)
}

/// `sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b))` of distances `[4, N]`: 1 at the centre of a box, 0 at its sides.
fn centerness(d: &Tensor) -> Tensor {
    let (l, t, r, b) = (d.get(0), d.get(1), d.get(2), d.get(3));
    ((l.minimum(&r) / l.maximum(&r)) * (t.minimum(&b) / t.maximum(&b))).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn centerness_by_hand() {
        let d = Tensor::from_slice(&[1.0f64, 4.0, 2.0, 2.0, 4.0, 4.0, 2.0, 2.0]).view([4, 2]);
        let found: Vec<f64> = centerness(&d).try_into().unwrap();
        assert_eq!(found, [0.5, 1.0]);
    }

    #[test]
    fn numbers_that_are_not_finite_come_out_wherever_they_are() {
        let (grid, options) = (Grid::centers(&[(2, 2)]), (Kind::Float, tch::Device::Cpu));
        let targets = crate::assign::PointTargets {
            boxes: vec![[0.0, 0.0, 9.0, 9.0]],
            labels: vec![1],
            positive: vec![0],
            gt: vec![0],
        };
        let targets = Targets::Points(targets.tensors());
        let criterion = FocalAndCenterness { box_loss: BoxLoss::Giou, classes: 2 };
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
        for (which, point) in [(0, 0), (0, 3), (1, 0), (1, 3), (2, 0), (2, 3)] {
            assert!(sum(which, point, f64::NAN).is_nan(), "input {which}, point {point}");
            assert!(sum(which, point, 2.0).is_finite());
        }
    }
}
