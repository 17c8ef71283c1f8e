//! FCOS (Tian et al., ICCV 2019, Sec. 3): each point is trained on the smallest box around it whose
//! size matches the point's level.
//!
//! Two forms: the improved one (centre sampling, GIoU loss) and the plain one of the paper (IoU
//! loss).

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::assign::hard::{BoxLoss, BoxTerm, FocalAndCenterness};
use crate::assign::positives::{Count, F32_EPSILON};
use crate::assign::smallest_box::{RADIUS, SmallestBox};
use crate::assign::{Strategy, StrategyConfig};
use crate::model::{Distances, ModelConfig, Params, Rank, Tower};

/// `[assign]` with `kind = "fcos"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FcosConfig {
    /// The form of FCOS.
    pub form: Form,
    /// Centre sampling (improved form): half the side of the square around a box's centre whose
    /// points can be positive, strides.
    pub radius: f64,
}

/// The two forms of FCOS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Centre sampling, GIoU loss.
    Improved,
    /// All points inside a box, IoU loss.
    Plain,
}

impl Default for FcosConfig {
    fn default() -> Self {
        Self { form: Form::Improved, radius: RADIUS }
    }
}

/// Lower bound of the sum of centre-ness, the denominator of the box loss.
const CENTERNESS_FLOOR: f64 = 1e-6;

impl StrategyConfig for FcosConfig {
    fn kind(&self) -> &'static str {
        "fcos"
    }

    fn check(&self) -> Result<(), String> {
        let radius = self.radius;
        if self.form == Form::Plain && radius != Self::default().radius {
            return Err(format!(
                "`assign.radius` = {radius} requires `assign.form` = \"improved\": the plain form \
                 has no centre sampling"
            ));
        }
        if radius > 0.0 && radius <= 1000.0 {
            return Ok(());
        }
        Err(format!(
            "`assign.radius`: expected a number above 0 and at most 1000 strides; found {radius}"
        ))
    }

    fn caution(&self, model: &ModelConfig) -> Option<String> {
        match self.form {
            Form::Improved => {
                model.unlike("FCOS (improved form)", Distances::Relu, Tower::Reg, true)
            }
            Form::Plain => model.unlike("FCOS (plain form)", Distances::Exp, Tower::Cls, false),
        }
    }

    fn summary(&self) -> String {
        match self.form {
            Form::Improved => {
                format!("FCOS, centre sampling within {} strides, GIoU loss", self.radius)
            }
            Form::Plain => "FCOS, plain form: all points inside a box, IoU loss".into(),
        }
    }

    fn build(&self, _: &mut Params, classes: i64) -> Strategy {
        let (loss, radius) = match self.form {
            Form::Improved => (BoxLoss::Giou, Some(self.radius)),
            Form::Plain => (BoxLoss::LogIou, None),
        };
        let bbox = BoxTerm { loss, weight: 1.0, floor: CENTERNESS_FLOOR, plus: F32_EPSILON };
        Strategy {
            matcher: Arc::new(SmallestBox { radius }),
            criterion: Box::new(FocalAndCenterness { bbox, count: Count::Positives, classes }),
            inference: Rank::Class.into(),
        }
    }
}
