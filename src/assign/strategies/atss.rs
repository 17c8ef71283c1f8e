//! ATSS (Zhang et al., CVPR 2020): its assignment ([`crate::assign::adaptive`]) with focal loss,
//! box loss and centre-ness loss.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::assign::adaptive::{AdaptiveThreshold, TOPK, check_topk};
use crate::assign::hard::{BoxLoss, BoxTerm, FocalAndCenterness};
use crate::assign::positives::{Count, F32_EPSILON};
use crate::assign::{Strategy, StrategyConfig};
use crate::model::{Distances, ModelConfig, Params, Rank, Tower};

/// `[assign]` with `kind = "atss"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AtssConfig {
    /// Candidates of a box: the anchors of each level nearest to its centre, at most this many.
    pub topk: usize,
}

impl Default for AtssConfig {
    fn default() -> Self {
        Self { topk: TOPK }
    }
}

/// Weight of the box loss in mmdetection's configuration.
const BOX_WEIGHT: f64 = 2.0;
impl StrategyConfig for AtssConfig {
    fn kind(&self) -> &'static str {
        "atss"
    }

    fn check(&self) -> Result<(), String> {
        check_topk(self.topk)
    }

    fn caution(&self, model: &ModelConfig) -> Option<String> {
        model.unlike("ATSS", Distances::Deltas, Tower::Reg, false)
    }

    fn summary(&self) -> String {
        format!("ATSS, {} nearest anchors a level", self.topk)
    }

    fn build(&self, _: &mut Params, classes: i64) -> Strategy {
        // mmdetection divides the sums of each level by 1 + the f32 epsilon before it divides by
        // the sum of centre-ness.
        let bbox = BoxTerm {
            loss: BoxLoss::Giou,
            weight: BOX_WEIGHT / (1.0 + F32_EPSILON),
            floor: 1.0,
            plus: 0.0,
        };
        Strategy {
            matcher: Arc::new(AdaptiveThreshold { topk: self.topk }),
            criterion: Box::new(FocalAndCenterness {
                bbox,
                count: Count::AtLeastOneAnImage,
                classes,
            }),
            inference: Rank::Class.into(),
        }
    }
}
