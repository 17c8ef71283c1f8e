//! GFL (Li et al., NeurIPS 2020) and GFLv2 (Li et al., CVPR 2021): ATSS's assignment, the IoU of
//! the predicted box as the target of its class score, and distances predicted as distributions.
//! The two differ only in the head.
//!
//! Shapes: B images, P points over all levels, C classes, N positive points.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::assign::adaptive::{AdaptiveThreshold, TOPK, check_topk};
use crate::assign::positives::{Count, F32_EPSILON, Positives};
use crate::assign::smallest_box::{RADIUS, SmallestBox};
use crate::assign::{Criterion, Matcher, Probe, Progress, Strategy, StrategyConfig, Targets};
use crate::geometry::BINS;
use crate::loss::{Normaliser, Term};
use crate::model::{Distances, ModelConfig, Params, Predictions, Rank, Tower};

/// `[assign]` with `kind = "gfl"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GflConfig {
    /// Candidates of a box: the anchors of each level nearest to its centre, at most this many.
    pub topk: usize,
    /// The assignment of points to boxes.
    pub assignment: Assignment,
}

/// `assign.assignment` of `kind = "gfl"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Assignment {
    /// The assignment of ATSS, as published.
    Atss,
    /// The assignment of FCOS with centre sampling.
    Fcos,
}

impl Default for GflConfig {
    fn default() -> Self {
        Self { topk: TOPK, assignment: Assignment::Atss }
    }
}

/// Weights of the box loss and of the distribution focal loss in mmdetection's configuration, with
/// the f32 epsilon that mmdetection adds to its denominators: 1 for the former, 4 sides for the
/// latter.
const BOX_WEIGHT: f64 = 2.0 / (1.0 + F32_EPSILON);
const DFL_WEIGHT: f64 = 0.25 / (4.0 + F32_EPSILON);
/// Difference between the largest value of a distribution and the largest target, strides.
const DFL_MARGIN: f64 = 0.1;

impl StrategyConfig for GflConfig {
    fn kind(&self) -> &'static str {
        "gfl"
    }

    fn towers(&self) -> &'static [Tower] {
        &[Tower::None, Tower::Distribution]
    }

    fn check(&self) -> Result<(), String> {
        if self.assignment == Assignment::Fcos && self.topk != TOPK {
            return Err(format!(
                "`assign.topk` = {} requires `assign.assignment` = \"atss\": that of FCOS has no \
                 candidates",
                self.topk
            ));
        }
        check_topk(self.topk)
    }

    fn caution(&self, model: &ModelConfig) -> Option<String> {
        // GFL and GFLv2 differ only in the quality.
        let quality = match model.quality_tower {
            Tower::Distribution => Tower::Distribution,
            _ => Tower::None,
        };
        model.unlike("GFL", Distances::Distribution, quality, false)
    }

    fn summary(&self) -> String {
        match self.assignment {
            Assignment::Atss => format!("GFL, {} nearest anchors a level", self.topk),
            Assignment::Fcos => "GFL with the assignment of FCOS".into(),
        }
    }

    fn build(&self, _: &mut Params, _: i64) -> Strategy {
        let (matcher, count): (Arc<dyn Matcher>, _) = match self.assignment {
            Assignment::Atss => {
                (Arc::new(AdaptiveThreshold { topk: self.topk }), Count::AtLeastOneAnImage)
            }
            Assignment::Fcos => (Arc::new(SmallestBox { radius: Some(RADIUS) }), Count::Positives),
        };
        Strategy {
            matcher,
            criterion: Box::new(GeneralizedFocal { count }),
            inference: Rank::Class.into(),
        }
    }
}

/// Quality focal loss over all points; box loss and distribution focal loss over the positive ones,
/// weighted by the largest class score of the point.
struct GeneralizedFocal {
    /// The normaliser of the class loss.
    count: Count,
}

impl Criterion for GeneralizedFocal {
    fn terms(
        &self,
        predicted: &Predictions,
        targets: &Targets,
        _: &Progress,
        _: &mut dyn Probe,
    ) -> Vec<Term> {
        let positive = Positives::new(predicted, targets);
        let cls_bpc = &predicted.cls;
        let (iou_n, giou_n) = positive.iou_and_giou();
        let target_bpc = positive.class_targets(cls_bpc, &iou_n.detach());
        // Quality focal loss (Eq. 4 with beta 2).
        let probability_bpc = predicted.probabilities();
        let quality_bpc =
            predicted.class_bce(&target_bpc) * (&probability_bpc - &target_bpc).square();
        let loss_cls =
            positive.targets.without_ignored(quality_bpc).sum(None) + predicted.nan_if_invalid();
        let weight_n = positive.rows(&probability_bpc).detach().amax([1], false);
        let loss_bbox = (-(giou_n - 1.0) * &weight_n).sum(None) * BOX_WEIGHT;
        let dfl_n = distribution_focal(&positive, predicted);
        let loss_dfl = (dfl_n * &weight_n).sum(None) * DFL_WEIGHT;
        let by_weight = || Normaliser::at_least_one(weight_n.sum(None));
        let by_count = positive.by_count(self.count, predicted);
        let term = |name, sum, by, needs_positives| Term { name, sum, by, needs_positives };
        vec![
            term("loss_cls", loss_cls, by_count, false),
            term("loss_bbox", loss_bbox, by_weight(), true),
            term("loss_dfl", loss_dfl, by_weight(), true),
        ]
    }
}

/// Distribution focal loss (Eq. 6) `[N]`, the sum over the four sides: cross entropy with the two
/// bins on either side of the target distance in strides, each weighted by how close the target is
/// to it.
fn distribution_focal(positive: &Positives, predicted: &Predictions) -> Tensor {
    let log_p_n4k = positive.rows(predicted.bins()).view([-1, 4, BINS]).log_softmax(-1, None);
    let (kind, device) = (log_p_n4k.kind(), log_p_n4k.device());
    let grid = &predicted.grid;
    let point_n = positive.targets.positive.remainder(grid.num_points());
    let stride_n = grid.strides(kind, device).index_select(0, &point_n);
    let most = (BINS - 1) as f64 - DFL_MARGIN;
    let target_n4 = (&positive.target / stride_n).clamp(0.0, most).tr();
    let low_n4 = target_n4.floor();
    let to_low_n4 = &target_n4 - &low_n4;
    let index_n41 = low_n4.to_kind(Kind::Int64).unsqueeze(-1);
    let at = |index: &Tensor| log_p_n4k.gather(-1, index, false).squeeze_dim(-1);
    let low = at(&index_n41) * (&to_low_n4 - 1.0);
    let high = at(&(&index_n41 + 1)) * to_low_n4;
    (low - high).sum_dim_intlist(1, false, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assign::ImageBoxes;
    use crate::geometry::{Grid, distances_of_bins, level_sizes};
    use crate::model::Outputs;
    use tch::Device;

    /// Terms of a network that predicts `bins` at every point of a 64 x 64 image with one box.
    fn terms(bins: &Tensor, logit: f64) -> Vec<Term> {
        let options = (Kind::Double, Device::Cpu);
        let sizes = level_sizes(64, 64);
        let map = |(h, w): (i64, i64)| bins.view([1, 4 * BINS, 1, 1]).expand([1, -1, h, w], false);
        let levels = sizes.map(map);
        let outputs = Outputs {
            cls: sizes.map(|(h, w)| Tensor::full([1, 3, h, w], logit, options)).into(),
            distances: levels
                .iter()
                .zip([8, 16, 32, 64, 128])
                .map(|(t, s)| distances_of_bins(t, s))
                .collect(),
            first: vec![],
            quality: vec![],
            cls_is: crate::model::ClassOutput::Logit,
            bins: levels.into(),
            offset: 0.0,
        };
        let boxes = vec![[4.0, 4.0, 60.0, 60.0]];
        let image = ImageBoxes { boxes, labels: vec![1], padded: None };
        let grid = Grid { sizes: sizes.to_vec(), offset: 0.0 };
        let targets = AdaptiveThreshold { topk: TOPK }.targets(&grid, &[image]);
        let targets = targets.to(Kind::Double, Device::Cpu);
        let criterion = GeneralizedFocal { count: Count::AtLeastOneAnImage };
        criterion.terms(&outputs.flatten(), &targets, &Progress::default(), &mut ())
    }

    #[test]
    fn distributions_that_are_not_finite_make_the_loss_nan() {
        let bins = Tensor::zeros([4 * BINS], (Kind::Double, Device::Cpu));
        let sum = |bins: &Tensor, logit| -> f64 {
            terms(bins, logit).iter().map(|t| t.sum.double_value(&[])).sum()
        };
        assert!(sum(&bins, 0.0).is_finite());
        assert!(sum(&bins, f64::NAN).is_nan());
        let _ = bins.get(3).fill_(f64::NAN);
        assert!(sum(&bins, 0.0).is_nan());
    }
}
