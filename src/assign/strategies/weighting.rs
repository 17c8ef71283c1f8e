//! The weighting functions of Table 1 of the DW paper on one head, one bag of points and one prior,
//! so that nothing but the function differs. The paper publishes no such experiment: this is our
//! definition. The row of DW itself is `kind = "dw"`.
//!
//! Shapes: B images, P points over all levels, C classes, G boxes, N (point, box) pairs, U covered
//! logits (see [`crate::assign::pairs`]).

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::assign::soft::{CenterPrior, InsidePoints, SoftInputs};
use crate::assign::{Criterion, PairTensors, Probe, Progress, Strategy, StrategyConfig, Targets};
use crate::loss::functions::bce;
use crate::loss::{Normaliser, Term};
use crate::model::params::Role;
use crate::model::{Distances, ModelConfig, Params, Predictions, Rank, Tower};

/// `[assign]` with `kind = "weighting"`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightingConfig {
    /// The weighting function.
    pub function: Function,
    /// Normalisation of the weights and of the terms.
    pub norm: Norm,
    /// Which weights carry a gradient.
    pub importance_grad: ImportanceGrad,
    /// Whether the weights of the box loss lack the factor `(s - t)^2` of `gfl` and `tood`, as in
    /// these systems.
    pub reg_native: bool,
}

/// A weighting function. s is the score of the box's class, U the IoU of the predicted box.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Function {
    /// Generalized focal loss: `w_pos = (s - t)^2 t`, `w_neg = (s - t)^2 (1 - t)`, t = U.
    #[default]
    Gfl,
    /// Varifocal loss: `w_pos = t^2`, `w_neg = t (1 - t)`, t = U.
    Vfl,
    /// TOOD: as `gfl`, with t the alignment `s U^6`, scaled within the bag.
    Tood,
    /// MuSu: `w_pos = (s - t)^2 t`, `w_neg = s^2 (1 - t)^4`, t from `s^(1/2) U`, scaled within the
    /// bag. The function that gives t is our reading.
    Musu,
}

impl Function {
    /// Table 1: the positive weight, and the two factors of the negative one, for scores s and
    /// targets t.
    pub fn weights(self, s: &Tensor, t: &Tensor) -> [Tensor; 3] {
        let squared = (s - t).square();
        let p_neg = -t + 1.0;
        match self {
            Self::Gfl | Self::Tood => [&squared * t, p_neg, squared],
            Self::Vfl => [t.square(), p_neg, t.shallow_clone()],
            Self::Musu => [squared * t, p_neg.pow_tensor_scalar(4), s.square()],
        }
    }
}

/// Normalisation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Norm {
    /// Normalisation of DW: weights add up to 1 over a bag, and terms are divided by the number of
    /// boxes or by the sum of 1 - P_neg.
    #[default]
    Dw,
    /// Normalisation of the systems: weights as they are, terms divided by the sum of t.
    Native,
}

/// Which weights carry a gradient to the scores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImportanceGrad {
    /// The importance in the negative weights, as in DW.
    #[default]
    Neg,
    /// None.
    None,
    /// The importance in the negative weights, and the positive weights of the classes.
    Both,
}

/// Factors of the terms, with the normalisation of DW.
const POSITIVE_WEIGHT: f64 = 0.25;
const BOX_WEIGHT: f64 = 1.25;
/// Factor of the box loss with the native normalisation.
const NATIVE_BOX_WEIGHT: f64 = 2.0;
/// Exponent of the IoU in the alignment of TOOD.
const TOOD_BETA: f64 = 6.0;
/// Lower bound of a bag's sum of weights.
const TINY: f64 = 1e-12;
/// Added to the largest alignment of a bag where it is a denominator.
const ALIGNMENT_TINY: f64 = 1e-7;
/// Lower bound of areas used as denominators, square pixels.
const AREA_EPS: f64 = 1e-6;

impl StrategyConfig for WeightingConfig {
    fn kind(&self) -> &'static str {
        "weighting"
    }

    fn check(&self) -> Result<(), String> {
        if self.reg_native && !matches!(self.function, Function::Gfl | Function::Tood) {
            return Err("`assign.reg_native` = true requires `assign.function` = \"gfl\" or \
                 \"tood\": the others have no factor (s - t)^2 that it would remove from the box \
                 loss"
                .into());
        }
        Ok(())
    }

    fn caution(&self, model: &ModelConfig) -> Option<String> {
        model.unlike("the comparison", Distances::Relu, Tower::Reg, true)
    }

    fn summary(&self) -> String {
        let Self { function, norm, importance_grad, reg_native } = self;
        let native = if *reg_native { ", native box weights" } else { "" };
        format!(
            "weighting function {function:?}, normalisation {norm:?}, gradient of importance \
             {importance_grad:?}{native}"
        )
        .to_lowercase()
    }

    /// The centre prior is DW's, a constant in the network's state.
    fn build(&self, params: &mut Params, classes: i64) -> Strategy {
        let mut constant = |name: &str, value| {
            let name = format!("bbox_head.center_prior.{name}");
            params.buffer(name, &[classes, 2], value, Role::Constant)
        };
        let start = f64::from(1.0f32 + 0.11f32);
        let prior = CenterPrior { mean: constant("mean", 0.0), sigma: constant("sigma", start) };
        Strategy {
            matcher: Arc::new(InsidePoints { classes, offset: 0.5 }),
            criterion: Box::new(Weighting { config: self.clone(), prior }),
            inference: Rank::Score.into(),
        }
    }
}

/// Computes the weights and losses.
struct Weighting {
    config: WeightingConfig,
    prior: CenterPrior,
}

/// The weights of the pairs `[N]`.
struct Weights {
    /// t of the function.
    t: Tensor,
    /// Positive weights of the class loss, before normalisation. Carries a gradient.
    positive: Tensor,
    /// Weights of the box loss, before normalisation, without gradient.
    boxes: Tensor,
    /// Probability of being negative, without gradient.
    p_neg: Tensor,
    /// Importance of a negative. Carries a gradient.
    importance: Tensor,
}

impl Criterion for Weighting {
    /// The probe records `t`, `w_pos` and `w_reg` of each pair `[N]`, `p_neg` and `w_neg` of each
    /// covered logit `[U]`.
    fn terms(
        &self,
        predicted: &Predictions,
        targets: &Targets,
        _: &Progress,
        probe: &mut dyn Probe,
    ) -> Vec<Term> {
        let pairs = targets.pairs();
        let x = SoftInputs::new(predicted, pairs, AREA_EPS);
        let (score_n, prior_n) = (x.score_n(), self.prior.of(pairs));
        let w = self.weights(&score_n, &x.iou_n, pairs);
        let (w_pos_n, w_reg_n) = self.normalised(&w, &prior_n, pairs);
        let cls_pos = (&w_pos_n * bce(&score_n, 1.0)).sum(None);
        let loc = (&w_reg_n * &x.giou_loss_n).sum(None);

        // If several boxes cover a logit, the last one counts, as in DW.
        let last = |t: &Tensor| t.index_select(0, &pairs.logit_last_pair);
        let (p_neg_u, importance_u) = (last(&w.p_neg), last(&w.importance));
        let w_neg_u = &p_neg_u * importance_u;
        // Outside the bags P_neg is 1, and the importance is s^2.
        let w_neg_bpc = x
            .score_bpc
            .square()
            .view([-1])
            .index_copy(0, &pairs.logit_index, &w_neg_u)
            .view_as(&x.score_bpc);
        let cls_neg = (w_neg_bpc * bce(&x.score_bpc, 0.0)).sum(None);
        for (name, value) in
            [("t", &w.t), ("w_pos", &w_pos_n), ("w_reg", &w_reg_n), ("p_neg", &p_neg_u)]
        {
            probe.record(name, &value.detach());
        }
        probe.record("w_neg", &w_neg_u.detach());

        let sums = match self.config.norm {
            Norm::Dw => {
                let candidates = (-p_neg_u + 1.0).sum(None);
                [
                    (cls_pos * POSITIVE_WEIGHT, x.num_boxes()),
                    (loc * BOX_WEIGHT, x.num_boxes()),
                    (cls_neg, candidates),
                ]
            }
            Norm::Native => {
                let by = || (&w.t * &prior_n).sum(None);
                [(cls_pos, by()), (loc * NATIVE_BOX_WEIGHT, by()), (cls_neg, by())]
            }
        };
        let names = [("loss_cls_pos", true), ("loss_loc", true), ("loss_cls_neg", false)];
        let term = |((name, needs_positives), (sum, by))| Term {
            name,
            sum: sum + &x.invalid,
            by: Normaliser::at_least_one(by),
            needs_positives,
        };
        names.into_iter().zip(sums).map(term).collect()
    }
}

impl Weighting {
    /// The weights of Table 1.
    fn weights(&self, score_n: &Tensor, iou_n: &Tensor, pairs: &PairTensors) -> Weights {
        let s = score_n.detach();
        let aligned = |m_n: Tensor| {
            let most = pairs.max_per_box(&m_n) + ALIGNMENT_TINY;
            m_n / most * pairs.max_per_box(iou_n)
        };
        let t = match self.config.function {
            Function::Gfl | Function::Vfl => iou_n.shallow_clone(),
            Function::Tood => aligned(&s * iou_n.pow_tensor_scalar(TOOD_BETA)),
            Function::Musu => aligned(iou_n * s.sqrt()),
        };
        let t_reg = match self.config.function {
            Function::Musu => aligned(&s * iou_n.sqrt()),
            _ => t.shallow_clone(),
        };
        let [positive, p_neg, importance] = self.config.function.weights(score_n, &t);
        let boxes = match self.config.function {
            _ if self.config.norm == Norm::Native => t_reg,
            Function::Musu => t_reg,
            _ if self.config.reg_native => t_reg,
            _ => positive.detach(),
        };
        let (positive, importance) = match self.config.importance_grad {
            ImportanceGrad::Neg => (positive.detach(), importance),
            ImportanceGrad::None => (positive.detach(), importance.detach()),
            ImportanceGrad::Both => (positive, importance),
        };
        Weights { t, positive, boxes, p_neg, importance }
    }

    /// The weights of class and box loss times the prior; with [`Norm::Dw`] they are normalised
    /// over each bag.
    fn normalised(&self, w: &Weights, prior_n: &Tensor, pairs: &PairTensors) -> (Tensor, Tensor) {
        let with_prior = |weight: &Tensor| {
            let weight = weight * prior_n;
            match self.config.norm {
                Norm::Dw => &weight / pairs.sum_per_box(&weight).clamp_min(TINY),
                Norm::Native => weight,
            }
        };
        (with_prior(&w.positive), with_prior(&w.boxes))
    }
}
