//! The varifocal loss of VarifocalNet (Zhang et al., CVPR 2021) on ATSS's assignment and head,
//! without VarifocalNet's star-shaped features and box refinement.
//!
//! Shapes: B images, P points over all levels, C classes, N positive points.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::assign::adaptive::{AdaptiveThreshold, TOPK, check_topk};
use crate::assign::positives::{Count, Positives};
use crate::assign::{Criterion, Probe, Progress, Strategy, Targets};
use crate::loss::functions::varifocal;
use crate::loss::{Normaliser, Term};
use crate::model::{Distances, ModelConfig, Predictions, Rank, Tower};

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
/// Lower bound of the IoU as a target: a positive point is not a negative one.
const SMALLEST_IOU: f64 = 1e-6;

impl VflConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// `topk` is out of range.
    pub(crate) fn check(&self) -> Result<(), String> {
        check_topk(self.topk)
    }

    /// A warning if the head is not the one of the published numbers.
    pub(crate) fn caution(model: &ModelConfig) -> Option<String> {
        let differences = model.differences(Distances::Deltas, Tower::None, false);
        (!differences.is_empty()).then(|| {
            format!("assign.kind = \"vfl\": the head differs from that of ATSS in {differences}")
        })
    }

    /// The settings on one line, for the table of settings in the log.
    pub(crate) fn summary(&self) -> String {
        format!("varifocal loss, {} nearest anchors a level", self.topk)
    }

    /// Builds matcher and criterion.
    pub(crate) fn build(&self) -> Strategy {
        Strategy {
            matcher: Arc::new(AdaptiveThreshold { topk: self.topk }),
            criterion: Box::new(Varifocal),
            inference: Rank::Class.into(),
        }
    }
}

/// Varifocal loss over all points, those in the padding included as in VarifocalNet; box loss over
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
        let iou_n = iou_n.detach().clamp_min(SMALLEST_IOU);
        let target_bpc = positive.class_targets(&predicted.cls, &iou_n);
        let loss_cls =
            varifocal(&predicted.cls, &target_bpc).sum(None) + predicted.nan_if_invalid();
        let loss_bbox = (-(giou_n - 1.0) * &iou_n).sum(None) * BOX_WEIGHT;
        let by_count = positive.by_count(Count::Positives, predicted);
        let by_iou = Normaliser::at_least_one(iou_n.sum(None));
        let term = |name, sum, by, needs_positives| Term { name, sum, by, needs_positives };
        vec![
            term("loss_cls", loss_cls, by_count, false),
            term("loss_bbox", loss_bbox, by_iou, true),
        ]
    }
}
