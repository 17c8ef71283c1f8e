//! `[assign]` with `kind = "dw"`.

use serde::{Deserialize, Serialize};

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

/// Settings of dual weighting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DwConfig {
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
    /// Refuses values and combinations that mean nothing.
    ///
    /// # Errors
    /// The key, what it must be (with its unit), and what it is.
    pub fn check(&self) -> Result<(), String> {
        self.check_prior()?;
        if self.beta <= 0.0 || self.mu <= 0.0 || self.gamma1 <= 0.0 || self.gamma2 <= 0.0 {
            return Err("`assign.beta`, `mu`, `gamma1`, `gamma2`: expected numbers above 0".into());
        }
        if self.formula == Formula::Released {
            if self.prior == Prior::Topk {
                return Err(
                    "`assign.prior` = \"topk\" belongs to `assign.formula` = \"paper\"".into()
                );
            }
            if self.w_neg != NegWeight::Full {
                return Err(
                    "`assign.w_neg` other than \"full\" belongs to `assign.formula` = \"paper\""
                        .into(),
                );
            }
        }
        Ok(())
    }

    /// `prior_value` has another unit under each formula and prior.
    fn check_prior(&self) -> Result<(), String> {
        let v = self.prior_value;
        let expected = match (self.prior, self.formula) {
            (Prior::Soft, _) if v == 0.0 => return Ok(()),
            (Prior::Soft, _) => "0: `assign.prior` = \"soft\" has no threshold",
            (Prior::Threshold, Formula::Released) if v > 0.0 && v < 1.0 => return Ok(()),
            (Prior::Threshold, Formula::Released) => {
                "a prior above 0 and below 1: with the released formula a point takes part where its \
                 prior exp(-d^2 / 2.46) is larger, d in strides from the box's centre"
            }
            (Prior::Threshold, Formula::Paper) if v > 0.0 && v <= LARGEST_RADIUS => return Ok(()),
            (Prior::Threshold, Formula::Paper) => {
                "a distance above 0 and at most 1000 strides: with the paper's formula a point takes \
                 part where it is nearer to the box's centre"
            }
            (Prior::Topk, _) if v.fract() == 0.0 && (1.0..=MOST_POINTS).contains(&v) => {
                return Ok(());
            }
            (Prior::Topk, _) => "a whole number of points on each level, 1 to 10000",
        };
        Err(format!("`assign.prior_value`: expected {expected}; found {v}"))
    }

    /// The settings on one line.
    pub(crate) fn summary(&self) -> String {
        format!(
            "DW, {:?} formula: beta {}, mu {}, gamma {} / {}, prior {:?}",
            self.formula, self.beta, self.mu, self.gamma1, self.gamma2, self.prior
        )
    }

    /// What a valid threshold leaves out, where it leaves out whole boxes: a box's centre is at most
    /// half a stride from the nearest point along each axis, so a stricter threshold excludes every
    /// point of some boxes.
    pub fn caution(&self) -> Option<String> {
        let nearest = std::f64::consts::FRAC_1_SQRT_2;
        let strict = match (self.prior, self.formula) {
            (Prior::Threshold, Formula::Released) => {
                self.prior_value > (-nearest * nearest / 2.46).exp()
            }
            (Prior::Threshold, Formula::Paper) => self.prior_value < nearest,
            _ => false,
        };
        strict.then(|| {
            format!(
                "assign.prior_value = {} excludes every point of boxes whose centre lies between \
                 points: they are not trained on (a prior of at most 0.81, or a distance of at least \
                 0.71 strides, keeps a point of every box on every level)",
                self.prior_value
            )
        })
    }
}

/// Largest distance of `prior = "threshold"`, strides: beyond any image.
const LARGEST_RADIUS: f64 = 1000.0;
/// Most points of a level for `prior = "topk"`.
const MOST_POINTS: f64 = 10_000.0;
