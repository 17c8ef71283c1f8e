//! AutoAssign (Zhu et al., 2020): the weights of a box's points follow from their predictions and
//! from a centre prior, which is trained for each class.
//!
//! Shapes: B images, P points over all levels, C classes, G boxes, N (point, box) pairs.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::assign::soft::{CenterPrior, InsidePoints, SoftInputs, localisation};
use crate::assign::{
    Criterion, PairTensors, Probe, Progress, Strategy, StrategyConfig, Targets, matrix,
};
use crate::geometry::Grid;
use crate::loss::functions::bce;
use crate::loss::{Normaliser, Term};
use crate::model::params::Init;
use crate::model::{Distances, ModelConfig, Params, Predictions, Rank, Tower};

/// `[assign]` with `kind = "autoassign"`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoAssignConfig {
    /// The form of the loss.
    pub form: Form,
}

/// The published loss, and the variants that the DW paper compares with (Sec. 4.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// The published loss.
    #[default]
    Published,
    /// Positive weights carry no gradient.
    Detach,
    /// Weights carry no gradient and multiply losses instead of scores.
    LossWeight,
    /// Weights multiply losses, and carry a gradient.
    LossWeightGradient,
}

/// Weights of the terms.
const POSITIVE_WEIGHT: f64 = 0.25;
const NEGATIVE_WEIGHT: f64 = 0.75;
const CENTER_WEIGHT: f64 = 0.75;
/// Exponent of the localisation score.
const BETA: f64 = 5.0;
/// Exponent of the confidence in the positive weights.
const MU: f64 = 3.0;
/// Lower bound of areas used as denominators, square pixels.
const AREA_EPS: f64 = 1e-6;
/// Lower bound of other denominators.
const TINY: f64 = 1e-12;

impl StrategyConfig for AutoAssignConfig {
    fn kind(&self) -> &'static str {
        "autoassign"
    }

    fn caution(&self, model: &ModelConfig) -> Option<String> {
        model.unlike("AutoAssign", Distances::Relu, Tower::Reg, true)
    }

    fn summary(&self) -> String {
        match self.form {
            Form::Published => "AutoAssign".into(),
            Form::Detach => "AutoAssign, positive weights without gradient".into(),
            Form::LossWeight => "AutoAssign, weights of losses, without gradient".into(),
            Form::LossWeightGradient => "AutoAssign, weights of losses, with gradient".into(),
        }
    }

    /// Mean and sigma of the centre prior are trained.
    fn build(&self, params: &mut Params, classes: i64) -> Strategy {
        let mut param = |name: &str, start| {
            let name = format!("bbox_head.center_prior.{name}");
            params.param(name, &[classes, 2], Init::Const(start), true, true)
        };
        let prior = CenterPrior { mean: param("mean", 0.0), sigma: param("sigma", 1.0) };
        Strategy {
            // Points at the corners of the cells, as in mmdetection.
            matcher: Arc::new(InsidePoints { classes, offset: 0.0 }),
            criterion: Box::new(AutoAssign { form: self.form, prior }),
            inference: Rank::Class.into(),
        }
    }
}

/// Computes the weights and losses.
struct AutoAssign {
    form: Form,
    prior: CenterPrior,
}

impl Criterion for AutoAssign {
    /// The probe records `positive`, the positive weight of each pair `[N]`, and `negative`, the
    /// negative weight of each covered logit `[U]`.
    fn terms(
        &self,
        predicted: &Predictions,
        targets: &Targets,
        _: &Progress,
        probe: &mut dyn Probe,
    ) -> Vec<Term> {
        let pairs = targets.pairs();
        let x = SoftInputs::new(predicted, pairs, AREA_EPS);
        let prior_n = self.prior.of(pairs);
        let positive = self.positive(&x, pairs, &prior_n, probe);
        let negative = self.negative(&x, pairs, &predicted.grid, probe);
        let (center, batch) = center_loss(&prior_n, pairs, &predicted.cls);
        let term = |name, sum: Tensor, value, needs_positives| Term {
            name,
            sum: sum + &x.invalid,
            by: Normaliser::at_least_one(value),
            needs_positives,
        };
        vec![
            // Not 0 without positives: a box without points adds a constant in two of the forms.
            term("loss_pos", positive, x.num_boxes(), false),
            term("loss_neg", negative, prior_n.detach().sum(None), false),
            term("loss_center", center, batch, true),
        ]
    }
}

impl AutoAssign {
    /// Sum of the positive loss.
    fn positive(
        &self,
        x: &SoftInputs,
        pairs: &PairTensors,
        prior_n: &Tensor,
        probe: &mut dyn Probe,
    ) -> Tensor {
        let confidence_n = x.score_n() * localisation(&x.giou_loss_n, BETA);
        let raw_n = (&confidence_n * MU).exp() * prior_n;
        let weight_n = &raw_n / pairs.sum_per_box(&raw_n).clamp_min(TINY);
        probe.record("positive", &weight_n.detach());
        let weight_n = match self.form {
            Form::Detach | Form::LossWeight => weight_n.detach(),
            Form::Published | Form::LossWeightGradient => weight_n,
        };
        let loss = match self.form {
            Form::LossWeight | Form::LossWeightGradient => weight_n * bce(&confidence_n, 1.0),
            Form::Published | Form::Detach => {
                let zeros_g = Tensor::zeros(pairs.labels.size(), (raw_n.kind(), raw_n.device()));
                let sum_g = zeros_g.index_add(0, &pairs.gt, &(weight_n * confidence_n));
                // The weights of a box add up to 1 except for rounding.
                bce(&sum_g.clamp_max(1.0), 1.0)
            }
        };
        loss.sum(None) * POSITIVE_WEIGHT
    }

    /// Sum of the negative loss.
    fn negative(
        &self,
        x: &SoftInputs,
        pairs: &PairTensors,
        grid: &Grid,
        probe: &mut dyn Probe,
    ) -> Tensor {
        let weight_u = tch::no_grad(|| negative_weights(x, pairs, grid));
        probe.record("negative", &weight_u);
        let score_bpc = &x.score_bpc;
        // 1 for the logits that are not covered.
        let ones = Tensor::ones([score_bpc.numel() as i64], (score_bpc.kind(), score_bpc.device()));
        let weight_bpc = ones.index_copy(0, &pairs.logit_index, &weight_u).view_as(score_bpc);
        let loss_bpc = match self.form {
            Form::LossWeight | Form::LossWeightGradient => {
                weight_bpc * score_bpc.square() * bce(score_bpc, 0.0)
            }
            Form::Published | Form::Detach => {
                let weighted_bpc = score_bpc * weight_bpc;
                weighted_bpc.square() * bce(&weighted_bpc, 0.0)
            }
        };
        loss_bpc.sum(None) * NEGATIVE_WEIGHT
    }
}

/// Negative weights of the covered logits `[U]`: in each bag 0 for the point with the best
/// predicted box, 1 for the one with the worst. Boxes are compared by their largest IoU with any
/// box of the image, which need not be the pair's.
fn negative_weights(x: &SoftInputs, pairs: &PairTensors, grid: &Grid) -> Tensor {
    let size = x.ltrb_bp4.size();
    let (batch, num_points) = (size[0], size[1]);
    let iou_gp = matrix::iou(&x.ltrb_bp4, grid, &pairs.boxes, &pairs.image, AREA_EPS);
    let image_gp = pairs.image.unsqueeze(1).expand_as(&iou_gp);
    let best_bp = Tensor::zeros([batch, num_points], (iou_gp.kind(), iou_gp.device()))
        .internal_scatter_reduce(0, &image_gp, &iou_gp, "amax", true);
    let best_n = best_bp.view([-1]).index_select(0, &pairs.point);
    let f_n = (-best_n + 1.0).clamp_min(TINY).reciprocal();
    let low_n = pairs.min_per_box(&f_n);
    let high_n = pairs.max_per_box(&f_n);
    let weight_n = -((f_n - &low_n + TINY) / (high_n - low_n + TINY)) + 1.0;
    // If several boxes cover a logit, the value of the last one is used, as in the reference, whose
    // indexed assignment does so on a CPU.
    weight_n.index_select(0, &pairs.logit_last_pair)
}

/// Sum of the centre loss, which keeps the prior wide, and the number of images. An image
/// contributes its number of boxes divided by the sum of its priors, or 0 if no point is inside a
/// box.
fn center_loss(prior_n: &Tensor, pairs: &PairTensors, cls_bpc: &Tensor) -> (Tensor, Tensor) {
    let (batch, num_points) = (cls_bpc.size()[0], cls_bpc.size()[1]);
    let options = (prior_n.kind(), prior_n.device());
    let zeros_b = || Tensor::zeros([batch], options);
    let image_n = pairs.point.divide_scalar_mode(num_points, "floor");
    let sum_b = zeros_b().index_add(0, &image_n, prior_n);
    let pairs_b = zeros_b().index_add(0, &image_n, &prior_n.detach().ones_like());
    let boxes_b =
        zeros_b().index_add(0, &pairs.image, &pairs.labels.ones_like().to_kind(options.0));
    let boxes_b = boxes_b * pairs_b.gt(0.0).to_kind(Kind::Float).to_kind(options.0);
    let loss = (boxes_b / sum_b.clamp_min(TINY)).sum(None) * CENTER_WEIGHT;
    (loss, Tensor::full([] as [i64; 0], batch as f64, options))
}
