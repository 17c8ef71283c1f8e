//! The varifocal loss of VarifocalNet (Zhang et al., CVPR 2021) on ATSS's assignment: with
//! VarifocalNet's head, which also has a loss for the boxes before refinement, or with ATSS's.
//!
//! Shapes: B images, P points over all levels, C classes, N positive points.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::assign::adaptive::{AdaptiveThreshold, TOPK, check_topk};
use crate::assign::positives::{Count, F32_EPSILON, Positives};
use crate::assign::{Criterion, Probe, Progress, Strategy, StrategyConfig, Targets};
use crate::loss::functions::varifocal;
use crate::loss::{Normaliser, Term};
use crate::model::{Distances, HeadKind, ModelConfig, Params, Predictions, Rank, Tower};

/// `[assign]` with `kind = "vfl"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VflConfig {
    /// Candidates of a box: the anchors of each level nearest to its centre, at most this many.
    pub topk: usize,
}

impl Default for VflConfig {
    fn default() -> Self {
        Self { topk: TOPK }
    }
}

/// Weight of the box loss.
const BOX_WEIGHT: f64 = 2.0;
/// Weight of the loss of the boxes before refinement.
const FIRST_WEIGHT: f64 = 1.5;
/// Lower bound of the IoU as a target: the loss takes a target of 0 as a negative.
const SMALLEST_IOU: f64 = 1e-6;

impl StrategyConfig for VflConfig {
    fn kind(&self) -> &'static str {
        "vfl"
    }

    fn towers(&self) -> &'static [Tower] {
        &[Tower::None]
    }

    fn check(&self) -> Result<(), String> {
        check_topk(self.topk)
    }

    fn caution(&self, model: &ModelConfig) -> Option<String> {
        if model.head == HeadKind::Vfnet {
            return None;
        }
        model.unlike("ATSS", Distances::Deltas, Tower::None, false)
    }

    fn summary(&self) -> String {
        format!("varifocal loss, {} nearest anchors a level", self.topk)
    }

    fn build(&self, _: &mut Params, _: i64) -> Strategy {
        Strategy {
            matcher: Arc::new(AdaptiveThreshold { topk: self.topk }),
            criterion: Box::new(Varifocal),
            inference: Rank::Class.into(),
        }
    }
}

/// Varifocal loss over all points, including those in the padding as in VarifocalNet; box loss over
/// the positive ones, weighted by the IoU of the predicted box.
struct Varifocal;

impl Criterion for Varifocal {
    fn terms(
        &self,
        predicted: &Predictions,
        targets: &Targets,
        _: &Progress,
        _: &mut dyn Probe,
    ) -> Vec<Term> {
        let positive = Positives::new(predicted, targets);
        let (iou_n, giou_n) = positive.iou_and_giou();
        let target_n = iou_n.detach().clamp_min(SMALLEST_IOU);
        let target_bpc = positive.class_targets(&predicted.cls, &target_n);
        let loss_cls =
            varifocal(&predicted.cls, &target_bpc).sum(None) + predicted.nan_if_invalid();
        let by_count = positive.by_count(Count::Positives, predicted);
        let mut terms =
            vec![Term { name: "loss_cls", sum: loss_cls, by: by_count, needs_positives: false }];
        let first = predicted.first.as_ref().map(|first| positive.iou_and_giou_of(first));
        let name = if let Some((first_iou_n, first_giou_n)) = first {
            terms.push(box_loss("loss_bbox", FIRST_WEIGHT, &first_iou_n, &first_giou_n));
            "loss_bbox_rf"
        } else {
            "loss_bbox"
        };
        terms.push(box_loss(name, BOX_WEIGHT, &iou_n, &giou_n));
        terms
    }
}

/// Sum of `1 - GIoU`, weighted by the IoU and divided by its sum.
fn box_loss(name: &'static str, weight: f64, iou_n: &Tensor, giou_n: &Tensor) -> Term {
    let iou_n = iou_n.detach().clamp_min(SMALLEST_IOU);
    Term {
        name,
        sum: (-(giou_n - 1.0) * &iou_n).sum(None) * weight,
        by: Normaliser { value: iou_n.sum(None), floor: 1.0, at_least: 0.0, plus: F32_EPSILON },
        needs_positives: true,
    }
}
