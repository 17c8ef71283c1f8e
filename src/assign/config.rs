//! `[assign]`: the closed list of strategies.

use std::fmt::Debug;

use serde::{Deserialize, Serialize};

use super::strategies::atss::AtssConfig;
use super::strategies::autoassign::AutoAssignConfig;
use super::strategies::dw::DwConfig;
use super::strategies::fcos::FcosConfig;
use super::strategies::gfl::GflConfig;
use super::strategies::ota::OtaConfig;
use super::strategies::paa::PaaConfig;
use super::strategies::simota::SimotaConfig;
use super::strategies::tal::TalConfig;
use super::strategies::vfl::VflConfig;
use super::strategies::weighting::WeightingConfig;
use super::{Strategy, StrategyConfig};
use crate::model::{Distances, HeadKind, ModelConfig, Params, Tower};

/// `[assign]`: the strategy (`kind`) and its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum AssignConfig {
    /// Dual weighting (Li et al., CVPR 2022).
    Dw(DwConfig),
    /// The assignment of FCOS (Tian et al., ICCV 2019).
    Fcos(FcosConfig),
    /// Adaptive training sample selection (ATSS; Zhang et al., CVPR 2020).
    Atss(AtssConfig),
    /// Generalized focal loss (GFL; Li et al., NeurIPS 2020).
    Gfl(GflConfig),
    /// The varifocal loss (VarifocalNet; Zhang et al., CVPR 2021) on ATSS's assignment.
    Vfl(VflConfig),
    /// Task alignment learning (TOOD; Feng et al., ICCV 2021).
    Tal(TalConfig),
    /// AutoAssign (Zhu et al., 2020).
    AutoAssign(AutoAssignConfig),
    /// Probabilistic anchor assignment (PAA; Kim and Lee, ECCV 2020).
    Paa(PaaConfig),
    /// Optimal transport assignment (OTA; Ge et al., CVPR 2021).
    Ota(OtaConfig),
    /// The assignment of YOLOX (Ge et al., 2021).
    SimOta(SimotaConfig),
    /// The weighting functions of Table 1 of the DW paper on one head and one bag.
    Weighting(WeightingConfig),
}

impl Default for AssignConfig {
    fn default() -> Self {
        Self::Dw(DwConfig::default())
    }
}

impl AssignConfig {
    /// Every strategy, with its default settings.
    pub fn all() -> [Self; 11] {
        [
            Self::Dw(DwConfig::default()),
            Self::Fcos(FcosConfig::default()),
            Self::Atss(AtssConfig::default()),
            Self::Gfl(GflConfig::default()),
            Self::Vfl(VflConfig::default()),
            Self::Tal(TalConfig::default()),
            Self::AutoAssign(AutoAssignConfig::default()),
            Self::Paa(PaaConfig::default()),
            Self::Ota(OtaConfig::default()),
            Self::SimOta(SimotaConfig::default()),
            Self::Weighting(WeightingConfig::default()),
        ]
    }

    /// The settings of the strategy.
    fn settings(&self) -> &dyn StrategyConfig {
        match self {
            Self::Dw(c) => c,
            Self::Fcos(c) => c,
            Self::Atss(c) => c,
            Self::Gfl(c) => c,
            Self::Vfl(c) => c,
            Self::Tal(c) => c,
            Self::AutoAssign(c) => c,
            Self::Paa(c) => c,
            Self::Ota(c) => c,
            Self::SimOta(c) => c,
            Self::Weighting(c) => c,
        }
    }

    /// Builds the strategy for a network of `classes` classes. Its own parameters and state are
    /// added to `params`, the network's.
    pub fn build(&self, params: &mut Params, classes: i64) -> Strategy {
        self.settings().build(params, classes)
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// As [`StrategyConfig::check`].
    pub fn check(&self) -> std::result::Result<(), String> {
        self.settings().check()
    }

    /// A warning about valid settings that are probably not intended; see
    /// [`StrategyConfig::caution`].
    pub fn caution(&self, model: &ModelConfig) -> Option<String> {
        let text = self.settings().caution(model)?;
        Some(format!("assign.kind = \"{}\": {text}", self.settings().kind()))
    }

    /// The settings on one line, for the table of settings in the log.
    pub fn summary(&self) -> String {
        self.settings().summary()
    }

    /// Checks that the head has what the strategy requires.
    ///
    /// # Errors
    /// The head lacks something that the strategy requires. The text names the keys of both.
    pub fn check_head(&self, model: &ModelConfig) -> std::result::Result<(), String> {
        let (kind, towers) = (self.settings().kind(), self.settings().towers());
        let refuse = |needs: &str, key: &str, found: &dyn Debug| {
            let found = format!("{found:?}").to_lowercase();
            Err(format!("`assign.kind` = \"{kind}\" requires {needs}: `{key}`, found {found}"))
        };
        match (model.head, self) {
            (HeadKind::Fcos, _) => {}
            // TOOD's class scores are aligned probabilities: DW takes them as its score.
            (HeadKind::Tood, Self::Dw(_) | Self::Tal(_)) | (HeadKind::Vfnet, Self::Vfl(_)) => {
                return Ok(());
            }
            _ => return refuse("another head", "model.head` = `fcos", &model.head),
        }
        let (tower, distances) = (model.quality_tower, model.distances);
        if !towers.contains(&tower) {
            let needs = if towers.contains(&Tower::None) {
                "no quality branch"
            } else {
                "a quality branch"
            };
            let names: Vec<String> =
                towers.iter().map(|t| format!("`{t:?}`").to_lowercase()).collect();
            let key = format!("model.quality_tower` = {}", names.join(" or "));
            return refuse(needs, key.trim_end_matches('`'), &tower);
        }
        match self {
            Self::Dw(_) | Self::AutoAssign(_) | Self::Weighting(_)
                if distances == Distances::Deltas =>
            {
                refuse(
                    "boxes that contain their points",
                    "model.distances` = `relu`, `exp` or `distribution",
                    &distances,
                )
            }
            Self::Gfl(_) if distances != Distances::Distribution => {
                refuse("distributions of distances", "model.distances` = `distribution", &distances)
            }
            Self::Gfl(_) if model.refine => {
                refuse("boxes as predicted", "model.refine` = `false", &true)
            }
            _ => Ok(()),
        }
    }

    /// Whether the strategy records the positive and negative weights that
    /// [`BagWeights`](super::figures::bags::BagWeights) reads.
    pub fn has_bag_weights(&self) -> bool {
        matches!(self, Self::Dw(_) | Self::Weighting(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_those_of_the_configuration() {
        for assign in AssignConfig::all() {
            let section = toml::Table::try_from(&assign).unwrap();
            assert_eq!(section["kind"].as_str(), Some(assign.settings().kind()));
        }
    }
}
