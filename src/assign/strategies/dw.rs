//! Dual weighting (DW; Li et al., CVPR 2022) in both formulas, over the list of (point, box) pairs.
//!
//! Shapes: B images, P points over all levels, C classes, G boxes, N pairs, U covered logits (see
//! [`crate::assign::pairs`]). Weights carry no gradient.

use std::sync::Arc;

use tch::Tensor;

pub use super::dw_config::{DwConfig, Formula, NegWeight, Prior};
use crate::assign::pairs::{InsidePoint, PairTensors, Pairs};
use crate::assign::soft::{CenterPrior, SoftInputs, localisation};
use crate::assign::{
    Criterion, ImageBoxes, Matcher, Probe, Progress, Strategy, StrategyConfig, Targets, kernels,
};
use crate::geometry::Grid;
use crate::loss::functions::bce;
use crate::loss::{Normaliser, Term};
use crate::model::params::Role;
use crate::model::{ModelConfig, Params, Predictions, Rank};

/// Lower bound of areas used as denominators, square pixels: released formula.
const AREA_EPS: f64 = 1e-6;
/// The same for the paper's formula; the paper gives no value.
const PAPER_AREA_EPS: f64 = 1e-9;
/// EPS of the released code: lower bound of a bag's sum of weights. It is also added to both parts
/// of the fraction that rescales P_neg, so that 0 / 0 gives 1.
const TINY: f64 = 1e-12;
/// Factor of both positive terms in the released code.
const POSITIVE_SCALE: f64 = 0.25;
/// P_neg is 1 below this IoU (Eq. 5).
const NEGATIVE_IOU: f64 = 0.5;
/// P_neg is 0 above this IoU (Eq. 5; paper's formula only).
const POSITIVE_IOU: f64 = 0.95;
/// Focal loss outside the bags (paper's formula).
const FOCAL_ALPHA: f64 = 0.25;
const FOCAL_GAMMA: f64 = 2.0;

impl StrategyConfig for DwConfig {
    fn kind(&self) -> &'static str {
        "dw"
    }

    fn check(&self) -> Result<(), String> {
        self.check_values()
    }

    fn caution(&self, _: &ModelConfig) -> Option<String> {
        self.strict_prior()
    }

    fn summary(&self) -> String {
        self.one_line()
    }

    /// Mean and sigma of the centre prior of the released formula are constants in the network's
    /// state, as in the released checkpoints; they are never trained.
    fn build(&self, params: &mut Params, classes: i64) -> Strategy {
        let mean = params.buffer("bbox_head.center_prior.mean", &[classes, 2], 0.0, Role::Constant);
        // 1 + 0.11, added in f32 as in the released code.
        let start = f64::from(1.0f32 + 0.11f32);
        let sigma =
            params.buffer("bbox_head.center_prior.sigma", &[classes, 2], start, Role::Constant);
        let matcher = Arc::new(Bags { config: self.clone(), classes });
        let prior = CenterPrior { mean, sigma };
        let criterion = Box::new(DualWeighting { config: self.clone(), prior });
        Strategy { matcher, criterion, inference: Rank::Score.into() }
    }
}

impl DwConfig {
    /// Finds the pairs of a batch. The bag of a box contains all points inside it; with the paper's
    /// formula and a `threshold` or `topk` prior, only those with prior 1.
    pub fn pairs(&self, grid: &Grid, classes: i64, images: &[ImageBoxes]) -> Pairs {
        Pairs::new(grid, classes, images, &|points, stride| self.filter_bag(points, stride))
    }

    fn filter_bag(&self, points: &mut Vec<InsidePoint>, stride: i64) {
        if self.formula == Formula::Released || self.prior == Prior::Soft {
            return;
        }
        // Distance from the box's centre in strides. Its offset along each axis is half the
        // difference of the distances to opposite sides.
        let radius =
            |[l, t, r, b]: [f32; 4]| f64::from(l - r).hypot(f64::from(t - b)) / (2 * stride) as f64;
        if self.prior == Prior::Threshold {
            points.retain(|p| radius(p.1) <= self.prior_value);
        } else {
            // The sort is stable: of equally distant points, the one with the lower index comes
            // first.
            points.sort_by(|a, b| radius(a.1).total_cmp(&radius(b.1)));
            points.truncate(self.prior_value as usize);
            points.sort_by_key(|p| p.0);
        }
    }
}

/// Finds the bag of points of each box.
struct Bags {
    config: DwConfig,
    classes: i64,
}

impl Matcher for Bags {
    fn targets(&self, grid: &Grid, images: &[ImageBoxes]) -> Targets {
        Targets::Pairs(self.config.pairs(grid, self.classes, images).tensors())
    }
}

/// Computes the weights and losses of both formulas.
struct DualWeighting {
    config: DwConfig,
    prior: CenterPrior,
}

impl DualWeighting {
    /// The settings in the form that [`kernels::dual_weighting`] takes.
    fn settings(&self) -> [f64; 5] {
        let c = &self.config;
        let hard_above = if c.prior == Prior::Soft { -1.0 } else { c.prior_value };
        [c.beta, c.mu, c.gamma1, c.gamma2, hard_above]
    }
}

/// Inputs of a formula.
struct Inputs<'a> {
    config: &'a DwConfig,
    prior: &'a CenterPrior,
    pairs: &'a PairTensors,
    /// Its scores are s of the paper.
    soft: SoftInputs<'a>,
}

impl Criterion for DualWeighting {
    /// Eq. 3-12 (`paper`), or the released code's formula; `docs/formulas.md` lists the
    /// differences.
    ///
    /// The probe records `w_pos`, the positive weight of each pair `[N]`, and `w_neg`, the weight
    /// of each covered logit in the negative loss `[U]`; with `released` also the factor `p_neg`
    /// of the latter `[U]`.
    fn terms(
        &self,
        predicted: &Predictions,
        targets: &Targets,
        _: &Progress,
        probe: &mut dyn Probe,
    ) -> Vec<Term> {
        let (config, pairs) = (&self.config, targets.pairs());
        if self.has_kernels()
            && let Some(found) =
                kernels::dual_weighting(self.settings(), &self.prior, predicted, pairs, probe)
        {
            return terms(found);
        }
        let eps = if config.formula == Formula::Released { AREA_EPS } else { PAPER_AREA_EPS };
        let soft = SoftInputs::new(predicted, pairs, eps);
        let x = Inputs { config, prior: &self.prior, pairs, soft };
        let mut terms = match config.formula {
            Formula::Released => released(&x, probe),
            Formula::Paper => paper(&x, probe),
        };
        for t in &mut terms {
            t.sum += &x.soft.invalid;
        }
        terms
    }

    fn has_kernels(&self) -> bool {
        self.config.formula == Formula::Released
    }
}

/// Builds the terms of the loss from the sum and normaliser of each: positive classification,
/// localisation, negative classification. The first two sums are 0 only without positive weights.
fn terms([cls_pos, loc, cls_neg]: [(Tensor, Tensor); 3]) -> Vec<Term> {
    let term = |name, (sum, value), needs_positives| Term {
        name,
        sum,
        by: Normaliser::at_least_one(value),
        needs_positives,
    };
    vec![
        term("loss_cls_pos", cls_pos, true),
        term("loss_loc", loc, true),
        term("loss_cls_neg", cls_neg, false),
    ]
}

/// The loss as the released code computes it.
fn released(x: &Inputs, probe: &mut dyn Probe) -> Vec<Term> {
    let (pairs, score_bpc) = (x.pairs, &x.soft.score_bpc);
    let logit_index_n = pairs.logit_index.index_select(0, &pairs.logit);
    let p_cls_n = score_bpc.reshape([-1]).index_select(0, &logit_index_n);
    let p_loc_n = localisation(&x.soft.giou_loss_n, x.config.beta);

    let w_pos_n = tch::no_grad(|| released_w_pos(x, &(&p_cls_n * &p_loc_n)));
    let p_neg_u = tch::no_grad(|| released_p_neg(x));
    // 1 for the logits that are not covered.
    let p_neg_bpc = Tensor::ones(score_bpc.numel() as i64, (score_bpc.kind(), score_bpc.device()))
        .index_copy_(0, &pairs.logit_index, &p_neg_u)
        .view_as(score_bpc);

    let boxes = x.soft.num_boxes();
    let cls_pos = (&w_pos_n * bce(&p_cls_n, 1.0)).sum(None) * POSITIVE_SCALE;
    let loc = (&w_pos_n * bce(&p_loc_n, 1.0)).sum(None) * POSITIVE_SCALE;
    // The importance s^gamma2 (Eq. 7) is not detached.
    let w_neg_bpc = p_neg_bpc * score_bpc.pow_tensor_scalar(x.config.gamma2);
    let cls_neg = (&w_neg_bpc * bce(score_bpc, 0.0)).sum(None);
    probe.record("w_pos", &w_pos_n);
    probe.record("p_neg", &p_neg_u);
    let flat = w_neg_bpc.detach().view([-1]);
    probe.record("w_neg", &flat.index_select(0, &pairs.logit_index));
    terms([(cls_pos, boxes.shallow_clone()), (loc, boxes), (cls_neg, (-&p_neg_u + 1.0).sum(None))])
}

/// Positive weights `[N]` of the consistencies `p_n` `[N]`, with the centre prior c:
/// `e^(mu p) p c`, divided by the sum of `e^(0.6 mu p) p c` over the bag.
fn released_w_pos(x: &Inputs, p_n: &Tensor) -> Tensor {
    let (c, pairs) = (x.config, x.pairs);
    let prior_n = x.prior.of(pairs);
    let prior_n = if c.prior == Prior::Soft {
        prior_n
    } else {
        prior_n.gt(c.prior_value).to_kind(p_n.kind())
    };
    // In the released code numerator and denominator have different exponents: 5 and 3 at mu = 5.
    let (above, below) = ((p_n * c.mu).exp(), (p_n * (c.mu * 0.6)).exp());
    let with_prior = p_n * prior_n;
    let (above, below) = (above * &with_prior, below * with_prior);
    above / pairs.sum_per_box(&below).clamp_min(TINY)
}

/// P_neg of each covered logit `[U]`: `(1 - IoU^gamma1) / (1 - 0.5^gamma1)`, rescaled by its
/// minimum and maximum (at most 1) over the pairs of the box, and 1 below IoU 0.5.
fn released_p_neg(x: &Inputs) -> Tensor {
    let (gamma1, pairs) = (x.config.gamma1, x.pairs);
    let f_n = (-x.soft.iou_n.pow_tensor_scalar(gamma1) + 1.0) / (1.0 - NEGATIVE_IOU.powf(gamma1));
    let low_n = pairs.min_per_box(&f_n);
    let high_n = pairs.max_per_box(&f_n).clamp_max(1.0);
    let ramp_n = (f_n - &low_n + TINY) / (high_n - low_n + TINY);
    let p_neg_n = ramp_n.masked_fill(&x.soft.iou_n.lt(NEGATIVE_IOU), 1.0);
    // If several boxes cover a logit, the value of the last one is used, as in the reference, whose
    // indexed assignment does so on a CPU.
    p_neg_n.index_select(0, &pairs.logit_last_pair)
}

/// The loss of Eq. 3-12.
fn paper(x: &Inputs, probe: &mut dyn Probe) -> Vec<Term> {
    let (pairs, score_bpc) = (x.pairs, &x.soft.score_bpc);
    let score_u = score_bpc.reshape([-1]).index_select(0, &pairs.logit_index);
    let score_n = score_u.index_select(0, &pairs.logit);

    let w_pos_n = tch::no_grad(|| paper_w_pos(x, &score_n));
    // A logit that several boxes cover is counted once, with the smallest weight.
    let w_neg_u = tch::no_grad(|| pairs.min_per_logit(&paper_w_neg(x, &score_n, &w_pos_n)));
    let alpha_bpc = Tensor::full(
        score_bpc.numel() as i64,
        1.0 - FOCAL_ALPHA,
        (score_bpc.kind(), score_bpc.device()),
    )
    .index_fill_(0, &pairs.logit_index, 0.0)
    .view_as(score_bpc);

    let boxes = x.soft.num_boxes();
    let cls_pos = (&w_pos_n * bce(&score_n, 1.0)).sum(None);
    let loc = (&w_pos_n * &x.soft.giou_loss_n).sum(None) * x.config.beta;
    let focal =
        (alpha_bpc * score_bpc.pow_tensor_scalar(FOCAL_GAMMA) * bce(score_bpc, 0.0)).sum(None);
    let cls_neg = (&w_neg_u * bce(&score_u, 0.0)).sum(None) + focal;
    probe.record("w_pos", &w_pos_n);
    probe.record("w_neg", &w_neg_u);
    terms([(cls_pos, boxes.shallow_clone()), (loc, boxes.shallow_clone()), (cls_neg, boxes)])
}

/// Positive weights `[N]` (Eq. 3 and 4) with the prior `e^(-r^2)`, r in strides, normalised over
/// the bag.
fn paper_w_pos(x: &Inputs, score_n: &Tensor) -> Tensor {
    let (c, pairs) = (x.config, x.pairs);
    let w_n = consistency_weight(score_n, &x.soft.iou_n, c.beta, c.mu);
    let w_n = if c.prior == Prior::Soft {
        let squared_n = pairs.center_offset().square().sum_dim_intlist(0, false, None);
        w_n * (-squared_n).exp()
    } else {
        w_n
    };
    &w_n / pairs.sum_per_box(&w_n).clamp_min(TINY)
}

/// Positive weight of scores and IoUs before prior and normalisation (Eq. 3 and 4).
pub fn consistency_weight(score: &Tensor, iou: &Tensor, beta: f64, mu: f64) -> Tensor {
    let t = score * iou.pow_tensor_scalar(beta);
    (&t * mu).exp() * t
}

/// P_neg of IoUs (Eq. 5 and 6): 1 below IoU 0.5, 0 above 0.95, and decreasing in between.
pub fn negative_probability(iou: &Tensor, gamma1: f64) -> Tensor {
    let (low, high) = (NEGATIVE_IOU.powf(gamma1), POSITIVE_IOU.powf(gamma1));
    let ramp = (-iou.pow_tensor_scalar(gamma1) + high) / (high - low);
    let p_neg = ramp.where_self(&iou.ge(NEGATIVE_IOU), &Tensor::ones_like(iou));
    p_neg.where_self(&iou.le(POSITIVE_IOU), &Tensor::zeros_like(iou))
}

/// Negative weights of the pairs `[N]` (Eq. 5 to 7), or a variant of Table 5.
fn paper_w_neg(x: &Inputs, score_n: &Tensor, w_pos_n: &Tensor) -> Tensor {
    let (c, iou_n) = (x.config, &x.soft.iou_n);
    let p_neg_n = negative_probability(iou_n, c.gamma1);
    // Eq. 7.
    let i_neg_n = score_n.pow_tensor_scalar(c.gamma2);
    match c.w_neg {
        NegWeight::Full => p_neg_n * i_neg_n,
        NegWeight::POnly => p_neg_n,
        NegWeight::IOnly => i_neg_n,
        NegWeight::None => Tensor::zeros_like(&p_neg_n),
        NegWeight::OneMinusPos => -w_pos_n + 1.0,
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::geometry::level_sizes;

    #[test]
    fn giou_just_above_1_is_clamped() {
        let giou_loss = Tensor::from_slice(&[-1e-7f32, 0.0, 0.5]).set_requires_grad(true);
        let p = localisation(&giou_loss, 5.0);
        // Without the clamp libtorch rejects the first: "all elements of input should be between 0
        // and 1".
        let loss = bce(&p, 1.0).sum(Kind::Float);
        loss.backward();
        assert_eq!(loss.double_value(&[]), 2.5);
        assert_eq!(
            Vec::<f32>::try_from(giou_loss.grad()).unwrap(),
            [0.0, 0.0, 5.0],
            "no gradient at a GIoU of 1 and above"
        );
    }

    /// Predictions of NaN, infinity, or huge numbers never abort; NaN and infinity make the loss
    /// NaN.
    #[test]
    fn predictions_that_are_not_finite_make_the_loss_nan() {
        let (grid, options) = (Grid::centers(&level_sizes(64, 64)), (Kind::Float, Device::Cpu));
        let num_points = grid.num_points();
        let images = [ImageBoxes {
            boxes: vec![[5.0, 5.0, 50.0, 60.0], [1.0, 2.0, 30.0, 30.0]],
            labels: vec![1, 1],
            padded: None,
        }];
        // Ones, with one other value at the tenth entry of `input` (0: cls, 1: distances, 2:
        // quality).
        let predict = |input: usize, value: f64| {
            let tensor = |n: usize, shape: &[i64]| {
                let t = Tensor::full(shape, 1.0, options);
                let entry = if n == input { value } else { 1.0 };
                let _ = t.view([-1]).narrow(0, 9, 1).fill_(entry);
                t.set_requires_grad(true)
            };
            Predictions {
                cls: tensor(0, &[1, num_points, 3]),
                distances: tensor(1, &[1, num_points, 4]),
                quality: Some(tensor(2, &[1, num_points])),
                cls_is: crate::model::ClassOutput::Logit,
                first: None,
                bins: None,
                grid: grid.clone(),
            }
        };
        for formula in [Formula::Released, Formula::Paper] {
            let config = DwConfig { formula, ..DwConfig::default() };
            let targets = Targets::Pairs(config.pairs(&grid, 3, &images).tensors());
            let prior = CenterPrior {
                mean: Tensor::zeros([3, 2], options),
                sigma: Tensor::ones([3, 2], options),
            };
            let criterion = DualWeighting { config, prior };
            for value in [f64::NAN, f64::INFINITY, 1e25, 1e38, 1.0] {
                for input in 0..3 {
                    let predicted = predict(input, value);
                    let terms =
                        criterion.terms(&predicted, &targets, &Progress::default(), &mut ());
                    let sum: f64 = terms.iter().map(|t| t.sum.double_value(&[])).sum();
                    let as_expected =
                        if value.is_finite() { sum.is_finite() } else { sum.is_nan() };
                    assert!(as_expected, "{formula:?}: {value} in input {input} gives {sum}");
                    terms.iter().map(|t| &t.sum).fold(Tensor::from(0f32), |a, b| a + b).backward();
                }
            }
        }
    }
}
