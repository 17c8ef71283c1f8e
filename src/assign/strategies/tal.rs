//! Task alignment learning (TOOD; Feng et al., ICCV 2021, Sec. 3.2): a box takes the points with
//! the best combination of class score and IoU with it. The first epochs use ATSS's assignment.
//!
//! Shapes: B images, P points over all levels, C classes, G boxes of the batch, K candidates of a
//! box, N = G K.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::assign::adaptive::{AdaptiveThreshold, MARGIN, TOPK};
use crate::assign::positives::{AREA_EPS, F32_EPSILON, Positives, centerness};
use crate::assign::{
    Criterion, PointTensors, Probe, Progress, Strategy, StrategyConfig, Targets, matrix,
};
use crate::geometry::{encode, iou_and_giou};
use crate::loss::{Normaliser, Term};
use crate::model::{Distances, HeadKind, ModelConfig, Params, Predictions, Rank, Tower};

/// `[assign]` with `kind = "tal"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TalConfig {
    /// Candidates of a box: the points of largest alignment over all levels, at most this many.
    pub topk: usize,
    /// Exponent of the class score in the alignment.
    pub alpha: f64,
    /// Exponent of the IoU in the alignment.
    pub beta: f64,
    /// Epochs that use the assignment of ATSS, because the alignment of an untrained network is
    /// arbitrary.
    pub atss_epochs: usize,
}

impl Default for TalConfig {
    fn default() -> Self {
        Self { topk: 13, alpha: 1.0, beta: 6.0, atss_epochs: 4 }
    }
}

/// Weight of the box loss, with the f32 epsilon that mmdetection adds to its denominator.
const BOX_WEIGHT: f64 = 2.0 / (1.0 + F32_EPSILON);
/// The same for the class loss.
const CLASS_WEIGHT: f64 = 1.0 / (1.0 + F32_EPSILON);
/// Weight of positive entries in the focal loss of the first epochs.
const FOCAL_ALPHA: f64 = 0.25;
/// Added to the largest alignment of a box where it is a denominator.
const TINY: f64 = 1e-7;

impl StrategyConfig for TalConfig {
    fn kind(&self) -> &'static str {
        "tal"
    }

    fn towers(&self) -> &'static [Tower] {
        &[Tower::None]
    }

    fn check(&self) -> Result<(), String> {
        let within = |key: &str, ok: bool, expected: &str, found: f64| {
            if ok {
                Ok(())
            } else {
                Err(format!("`assign.{key}`: expected {expected}; found {found}"))
            }
        };
        let power = |v: f64| (0.0..=100.0).contains(&v);
        within("topk", (1..=1000).contains(&self.topk), "1 to 1000 points", self.topk as f64)?;
        within("alpha", power(self.alpha), "an exponent, 0 to 100", self.alpha)?;
        within("beta", power(self.beta), "an exponent, 0 to 100", self.beta)
    }

    fn caution(&self, model: &ModelConfig) -> Option<String> {
        if model.head == HeadKind::Tood {
            return None;
        }
        model.unlike("ATSS", Distances::Deltas, Tower::None, false)
    }

    fn summary(&self) -> String {
        let Self { topk, alpha, beta, atss_epochs } = self;
        format!(
            "task alignment, {topk} points of largest score^{alpha} IoU^{beta}, after \
             {atss_epochs} epochs of ATSS's assignment"
        )
    }

    fn build(&self, _: &mut Params, _: i64) -> Strategy {
        Strategy {
            matcher: Arc::new(AdaptiveThreshold { topk: TOPK }),
            criterion: Box::new(TaskAligned { config: self.clone() }),
            inference: Rank::Class.into(),
        }
    }
}

/// The losses of TOOD.
struct TaskAligned {
    config: TalConfig,
}

impl Criterion for TaskAligned {
    fn terms(
        &self,
        predicted: &Predictions,
        targets: &Targets,
        at: &Progress,
        probe: &mut dyn Probe,
    ) -> Vec<Term> {
        if at.epoch < self.config.atss_epochs {
            first_epochs(predicted, targets)
        } else {
            self.aligned(predicted, targets.points(), probe)
        }
    }
}

/// Builds the terms from sum and normaliser of the class loss and of the box loss.
fn terms(class: (Tensor, Tensor), boxes: (Tensor, Tensor)) -> Vec<Term> {
    let term = |name, (sum, by), weight: f64, needs_positives| Term {
        name,
        sum: sum * weight,
        by: Normaliser::at_least_one(by),
        needs_positives,
    };
    vec![term("loss_cls", class, CLASS_WEIGHT, false), term("loss_bbox", boxes, BOX_WEIGHT, true)]
}

/// The losses of the first epochs: ATSS's assignment, focal loss, and box loss weighted by
/// centre-ness.
fn first_epochs(predicted: &Predictions, targets: &Targets) -> Vec<Term> {
    let positive = Positives::new(predicted, targets);
    let ones_n = positive.labels.ones_like().to_kind(predicted.cls.kind());
    let one_hot = positive.class_targets(&predicted.cls, &ones_n);
    let alpha_bpc = &one_hot * (2.0 * FOCAL_ALPHA - 1.0) + (1.0 - FOCAL_ALPHA);
    let center_n = centerness(&positive.target);
    let giou_n = positive.iou_and_giou().1;
    let loss_bbox = (-(giou_n - 1.0) * &center_n).sum(None);
    let loss_cls = class_loss(predicted, &one_hot, positive.targets, Some(&alpha_bpc));
    terms((loss_cls, ones_n.sum(None)), (loss_bbox, center_n.sum(None)))
}

/// Sum of the class loss over the points that are not ignored: binary cross entropy with the
/// targets, times the squared difference of score and target, times `weight_bpc`.
fn class_loss(
    predicted: &Predictions,
    target_bpc: &Tensor,
    t: &PointTensors,
    weight_bpc: Option<&Tensor>,
) -> Tensor {
    let wrong_bpc = predicted.probabilities() - target_bpc;
    let loss_bpc = predicted.class_bce(target_bpc) * wrong_bpc.square();
    let loss_bpc = match weight_bpc {
        Some(weight_bpc) => loss_bpc * weight_bpc,
        None => loss_bpc,
    };
    t.without_ignored(loss_bpc).sum(None) + predicted.nan_if_invalid()
}

/// The candidates of all boxes. Tensors are `[G, K]`; without gradient.
struct Candidates {
    /// Row of the candidate's point, `image * P + point`.
    row: Tensor,
    /// The target: 0 for candidates that the box does not own, else the alignment, scaled so that
    /// the largest alignment of a box becomes the largest IoU of its points.
    target: Tensor,
    /// Whether the box owns the point, 0 or 1.
    owned: Tensor,
    /// Distances (l, t, r, b) to the sides of the box `[4, G, K]`, pixels.
    distances: Tensor,
}

impl TaskAligned {
    /// The losses after the first epochs. The probe records for each point `[B * P]` the index of
    /// its box in the batch, from 1 (`gt_index`; 0 for none), and its target (`target`).
    fn aligned(&self, p: &Predictions, t: &PointTensors, probe: &mut dyn Probe) -> Vec<Term> {
        let found = tch::no_grad(|| self.candidates(p, t));
        let (num_rows, classes) = (p.cls.size()[0] * p.cls.size()[1], p.cls.size()[2]);
        let options = (p.cls.kind(), p.cls.device());
        let (row_n, target_n) = (found.row.view([-1]), found.target.view([-1]));
        // Every point has at most one owner; the others add 0.
        let logit_n = (&found.row * classes + t.labels.unsqueeze(1)).view([-1]);
        let target_bpc = Tensor::zeros([num_rows * classes], options)
            .index_add(0, &logit_n, &target_n)
            .view_as(&p.cls);
        let gt_gk = Tensor::arange(t.labels.size()[0], (Kind::Int64, p.cls.device())).unsqueeze(1);
        let index_gk = (gt_gk + 1) * found.owned.to_kind(Kind::Int64);
        let zeros = Tensor::zeros([num_rows], (Kind::Int64, p.cls.device()));
        probe.record("gt_index", &zeros.index_add(0, &row_n, &index_gk.view([-1])));
        probe.record("target", &Tensor::zeros([num_rows], options).index_add(0, &row_n, &target_n));

        let found_4n = p.distances.reshape([-1, 4]).index_select(0, &row_n).tr();
        let giou_n = iou_and_giou(&found_4n, &found.distances.view([4, -1]), AREA_EPS).1;
        let loss_bbox = (-(giou_n - 1.0) * &target_n).sum(None);
        let loss_cls = class_loss(p, &target_bpc, t, None);
        let sum = target_n.sum(None);
        terms((loss_cls, sum.shallow_clone()), (loss_bbox, sum))
    }

    /// Finds the candidates of all boxes of the batch at once: matrices `[G, P]`, no loop over
    /// boxes or images.
    fn candidates(&self, p: &Predictions, t: &PointTensors) -> Candidates {
        let (batch, num_points) = (p.cls.size()[0], p.cls.size()[1]);
        let (kind, device) = (p.cls.kind(), p.cls.device());
        let (num_gt, image_g1) = (t.labels.size()[0], t.image.unsqueeze(1));
        let iou_gp = matrix::iou(&p.distances, &p.grid, &t.boxes, &t.image, AREA_EPS);
        let score_gp = matrix::of_class(&p.probabilities(), t);
        let valid_bp = t.without_ignored(Tensor::ones([batch, num_points, 1], (kind, device)));
        let alignment_gp = score_gp.pow_tensor_scalar(self.config.alpha)
            * iou_gp.pow_tensor_scalar(self.config.beta)
            * valid_bp.squeeze_dim(-1).index_select(0, &t.image);

        let k = (self.config.topk as i64).min(num_points);
        let (alignment_gk, point_gk) = alignment_gp.topk(k, 1, true, false);
        let iou_gk = iou_gp.gather(1, &point_gk, false);
        let points_gk2 =
            p.grid.points(kind, device).index_select(0, &point_gk.view([-1])).view([num_gt, k, 2]);
        let distances = encode(&points_gk2, &t.boxes.unsqueeze(1)).permute([2, 0, 1]).contiguous();
        let is_inside_gk = distances.amin([0], false).gt(f64::from(MARGIN));
        let claims_gk = alignment_gk.gt(0.0).logical_and(&is_inside_gk);
        let row = point_gk + image_g1 * num_points;
        let owned = owned(&claims_gk, &iou_gk, &row, batch * num_points).to_kind(kind);
        let largest = |values_gk: &Tensor| (values_gk * &owned).amax([1], true);
        let scale_g1 = largest(&iou_gk) / (largest(&alignment_gk) + TINY);
        let target = alignment_gk * &owned * scale_g1;
        Candidates { row, target, owned, distances }
    }
}

/// Which claims of boxes on points are granted, `[G, K]`: a point goes to the claiming box with the
/// largest IoU, the first one on a tie. `row_gk` are the points, in `0..num_rows`; a box claims a
/// point at most once.
fn owned(claims_gk: &Tensor, iou_gk: &Tensor, row_gk: &Tensor, num_rows: i64) -> Tensor {
    let row_n = row_gk.reshape([-1]);
    let options = (iou_gk.kind(), iou_gk.device());
    let iou_n = iou_gk.where_scalarother(claims_gk, -1.0).reshape([-1]);
    let best = Tensor::full([num_rows], -1.0, options)
        .internal_scatter_reduce(0, &row_n, &iou_n, "amax", true)
        .index_select(0, &row_n);
    let is_best_n = claims_gk.reshape([-1]).logical_and(&iou_n.eq_tensor(&best));
    let size = claims_gk.size();
    let gt_n = Tensor::arange(size[0], (Kind::Int64, iou_gk.device()))
        .unsqueeze(1)
        .expand(&size, false)
        .reshape([-1]);
    let claimed_by_n = gt_n.where_scalarother(&is_best_n, size[0]);
    let first = Tensor::full([num_rows], size[0], (Kind::Int64, iou_gk.device()))
        .internal_scatter_reduce(0, &row_n, &claimed_by_n, "amin", true)
        .index_select(0, &row_n);
    is_best_n.logical_and(&gt_n.eq_tensor(&first)).view_as(claims_gk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn a_point_belongs_to_the_box_of_the_largest_iou_then_to_the_first() {
        // Three boxes with two candidates each, of four points.
        let points = Tensor::from_slice(&[0i64, 1, 1, 2, 2, 3]).view([3, 2]);
        let iou = Tensor::from_slice(&[0.5, 0.5, 0.7, 0.6, 0.6, 0.9]).view([3, 2]);
        let claims = Tensor::from_slice(&[true, true, true, true, true, false]).view([3, 2]);
        let found: Vec<bool> = owned(&claims, &iou, &points, 4).view([-1]).try_into().unwrap();
        assert_eq!(found, [true, false, true, true, false, false]);
        let none = |kind| Tensor::zeros([0, 2], (kind, Device::Cpu));
        let found = owned(&none(Kind::Bool), &none(Kind::Float), &none(Kind::Int64), 4);
        assert_eq!(found.size(), [0, 2]);
    }
}
