//! Settings of dual weighting: `[assign]` with `kind = "dw"`. Equations and tables are those of the
//! DW paper (Li et al., CVPR 2022).

use serde::{Deserialize, Serialize};

/// The two formulas of DW; `docs/formulas.md` compares them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Formula {
    /// As in the authors' code, which gave the published AP.
    Released,
    /// Eq. 3-12 of the paper, literally.
    Paper,
}

/// Kind of the centre prior, a factor of the positive weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prior {
    /// A Gaussian of the distance from the box's centre.
    Soft,
    /// 1 near the box's centre, else 0; `prior_value` is the threshold.
    Threshold,
    /// 1 for the `prior_value` points of each level nearest to the box's centre, else 0 (paper's
    /// formula only).
    Topk,
}

/// Variants of the negative weight w_neg inside the bags (Table 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NegWeight {
    /// P_neg * I_neg.
    Full,
    /// P_neg.
    POnly,
    /// I_neg.
    IOnly,
    /// 0: no negative loss inside the bags.
    None,
    /// 1 - w_pos.
    OneMinusPos,
}

/// `[assign]` with `kind = "dw"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DwConfig {
    /// Which of the two formulas is used.
    pub formula: Formula,
    /// Exponent of IoU in the consistency t (Eq. 3), and weight of the regression loss.
    pub beta: f64,
    /// Factor of t in the exponent of the positive weight (Eq. 4).
    pub mu: f64,
    /// Exponent of IoU in P_neg (Eq. 5).
    pub gamma1: f64,
    /// Exponent of the score in I_neg (Eq. 7).
    pub gamma2: f64,
    /// Kind of the centre prior.
    pub prior: Prior,
    /// Limit of the prior, 0 for `soft`. For `threshold`: the largest distance from the centre in
    /// strides (paper's formula), or the prior that must be exceeded (released formula). For
    /// `topk`: the number of points of each level.
    pub prior_value: f64,
    /// Negative weight inside the bags; only `full` with the released formula.
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
    /// Checks the settings.
    ///
    /// # Errors
    /// A value is out of range or does not fit another setting. The text names the key, the
    /// expected values with their unit, and the value found.
    pub(super) fn check_values(&self) -> Result<(), String> {
        self.check_prior()?;
        for (key, value) in
            [("beta", self.beta), ("mu", self.mu), ("gamma1", self.gamma1), ("gamma2", self.gamma2)]
        {
            if value <= 0.0 {
                return Err(format!("`assign.{key}`: expected a number above 0; found {value}"));
            }
        }
        // These limits keep exp(mu p) finite and 1 - IoU^gamma1 accurate in f32.
        if self.mu > 80.0 {
            return Err(format!("`assign.mu`: expected at most 80; found {}", self.mu));
        }
        if self.gamma1 < 1e-3 {
            return Err(format!("`assign.gamma1`: expected at least 0.001; found {}", self.gamma1));
        }
        if self.formula == Formula::Released {
            if self.prior == Prior::Topk {
                return Err(
                    "`assign.prior` = \"topk\" requires `assign.formula` = \"paper\"".into()
                );
            }
            if self.w_neg != NegWeight::Full {
                return Err(
                    "`assign.w_neg` other than \"full\" requires `assign.formula` = \"paper\""
                        .into(),
                );
            }
        }
        Ok(())
    }

    /// Checks `prior_value`, whose unit and range depend on formula and prior.
    fn check_prior(&self) -> Result<(), String> {
        let v = self.prior_value;
        let expected = match (self.prior, self.formula) {
            (Prior::Soft, _) if v == 0.0 => return Ok(()),
            (Prior::Soft, _) => "0: `assign.prior` = \"soft\" has no threshold",
            (Prior::Threshold, Formula::Released) if v > 0.0 && v < 1.0 => return Ok(()),
            (Prior::Threshold, Formula::Released) => {
                "a prior above 0 and below 1: the released formula uses the points whose prior \
                 exp(-d^2 / 2.46) is larger, d being the distance from the box's centre in strides"
            }
            (Prior::Threshold, Formula::Paper) if v > 0.0 && v <= MAX_RADIUS => return Ok(()),
            (Prior::Threshold, Formula::Paper) => {
                "a distance above 0 and at most 1000 strides: the paper's formula uses the points \
                 that are at most as far from the box's centre"
            }
            (Prior::Topk, _) if v.fract() == 0.0 && (1.0..=MAX_POINTS).contains(&v) => {
                return Ok(());
            }
            (Prior::Topk, _) => "a whole number of points on each level, 1 to 10000",
        };
        Err(format!("`assign.prior_value`: expected {expected}; found {v}"))
    }

    /// The settings on one line, for the table of settings in the log.
    pub(super) fn one_line(&self) -> String {
        format!(
            "DW, {:?} formula: beta {}, mu {}, gamma {} / {}, prior {:?} {}, w_neg {:?}",
            self.formula,
            self.beta,
            self.mu,
            self.gamma1,
            self.gamma2,
            self.prior,
            self.prior_value,
            self.w_neg
        )
    }

    /// A warning if a valid threshold excludes every point of some boxes. A box's centre can be
    /// half a stride from the nearest point along each axis, so the threshold must allow a distance
    /// of `sqrt(1/2)` strides.
    pub(super) fn strict_prior(&self) -> Option<String> {
        let farthest = std::f64::consts::FRAC_1_SQRT_2;
        let strict = match (self.prior, self.formula) {
            (Prior::Threshold, Formula::Released) => {
                self.prior_value > (-farthest * farthest / 2.46).exp()
            }
            (Prior::Threshold, Formula::Paper) => self.prior_value < farthest,
            _ => false,
        };
        strict.then(|| {
            format!(
                "assign.prior_value = {} excludes every point of boxes whose centre is between \
                 points, so these boxes are not trained on\nhint: a prior of at most 0.81, or a \
                 distance of at least 0.71 strides, keeps a point of every box on every level",
                self.prior_value
            )
        })
    }
}

/// Largest `prior_value` of `prior = "threshold"` with the paper's formula, strides: larger than
/// any image.
const MAX_RADIUS: f64 = 1000.0;
/// Largest `prior_value` of `prior = "topk"`, points.
const MAX_POINTS: f64 = 10_000.0;
