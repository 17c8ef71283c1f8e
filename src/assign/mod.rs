//! Label assignment: which points learn from which box, and how much.
//!
//! A strategy sees this rank's images only. It returns local sums and local denominators; [`crate::train`] adds the
//! denominators of all ranks before it divides.

pub mod dw;
pub mod pairs;

use serde::{Deserialize, Serialize};
use tch::Tensor;

pub use pairs::{PairTensors, Pairs, PairsBuilder};

/// One term of the loss: `sum / max(denominator over all ranks, 1)`.
#[derive(Debug)]
pub struct Term {
    /// Name in `metrics.jsonl`.
    pub name: &'static str,
    /// Scalar, connected to the graph even when the batch has no box (pain 6).
    pub sum: Tensor,
    /// Scalar without gradient, of this rank.
    pub denominator: Tensor,
}

/// Which of DW's two formulas (`docs/formulas.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Formula {
    /// What the authors' code computes; the published AP belongs to it.
    Released,
    /// Eq. 3-12 of the paper to the letter.
    Paper,
}

/// The centre prior.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prior {
    /// Falls off smoothly from the box's centre.
    Soft,
    /// 1 near the centre, 0 beyond `prior_value`.
    Threshold,
    /// The `prior_value` points of each level nearest to the centre.
    Topk,
}

/// The negative weight (Table 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NegWeight {
    /// P_neg * I_neg.
    Full,
    /// P_neg.
    POnly,
    /// I_neg.
    IOnly,
    /// No negative loss inside the bags.
    None,
    /// 1 - w_pos.
    OneMinusPos,
}

/// Which strategy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Dual weighting.
    Dw,
}

/// `[assign]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DwConfig {
    /// Strategy.
    pub kind: Kind,
    /// Formula.
    pub formula: Formula,
    /// Weight of IoU in the consistency t (Eq. 3).
    pub beta: f64,
    /// Steepness of the positive weight (Eq. 4).
    pub mu: f64,
    /// Exponent of IoU in P_neg (Eq. 5).
    pub gamma1: f64,
    /// Exponent of the score in I_neg (Eq. 7).
    pub gamma2: f64,
    /// Centre prior.
    pub prior: Prior,
    /// Distance in strides (`threshold`; the released formula: least prior) or number of points (`topk`).
    pub prior_value: f64,
    /// Negative weight.
    pub w_neg: NegWeight,
}

impl Default for DwConfig {
    fn default() -> Self {
        Self {
            kind: Kind::Dw,
            formula: Formula::Released,
            beta: 5.0,
            mu: 5.0,
            gamma1: 2.0,
            gamma2: 2.0,
            prior: Prior::Soft,
            prior_value: 0.0,
            w_neg: NegWeight::Full,
        }
    }
}

impl DwConfig {
    /// Combinations that mean nothing.
    pub fn check(&self) -> Result<(), String> {
        if self.prior != Prior::Soft && self.prior_value <= 0.0 {
            return Err("`assign.prior_value`: expected a number above 0 for this `assign.prior`".into());
        }
        if self.beta <= 0.0 || self.mu <= 0.0 || self.gamma1 <= 0.0 || self.gamma2 <= 0.0 {
            return Err("`assign.beta`, `mu`, `gamma1`, `gamma2`: expected numbers above 0".into());
        }
        if self.formula == Formula::Released {
            if self.prior == Prior::Topk {
                return Err("`assign.prior` = \"topk\" belongs to `assign.formula` = \"paper\"".into());
            }
            if self.w_neg != NegWeight::Full {
                return Err("`assign.w_neg` other than \"full\" belongs to `assign.formula` = \"paper\"".into());
            }
        }
        Ok(())
    }
}
