//! `[assign]`: the closed list of strategies.

use std::fmt::Debug;

use serde::{Deserialize, Serialize};

use super::Strategy;
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

    /// Builds the strategy for a network of `classes` classes. Its own parameters and state are
    /// added to `params`, the network's.
    pub fn build(&self, params: &mut Params, classes: i64) -> Strategy {
        match self {
            Self::Dw(c) => c.build(params, classes),
            Self::Fcos(c) => c.build(classes),
            Self::Atss(c) => c.build(classes),
            Self::Gfl(c) => c.build(),
            Self::Vfl(c) => c.build(),
            Self::Tal(c) => c.build(),
            Self::AutoAssign(c) => c.build(params, classes),
            Self::Paa(c) => c.build(),
            Self::Ota(c) => c.build(),
            Self::SimOta(c) => c.build(),
            Self::Weighting(c) => c.build(params, classes),
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// A value is out of range or does not fit another setting. The text names the key, the
    /// expected values with their unit, and the value found.
    pub fn check(&self) -> std::result::Result<(), String> {
        match self {
            Self::Dw(c) => c.check(),
            Self::Fcos(c) => c.check(),
            Self::Atss(c) => c.check(),
            Self::Gfl(c) => c.check(),
            Self::Vfl(c) => c.check(),
            Self::Tal(c) => c.check(),
            Self::AutoAssign(_) => Ok(()),
            Self::Paa(c) => c.check(),
            Self::Ota(c) => c.check(),
            Self::SimOta(c) => c.check(),
            Self::Weighting(c) => c.check(),
        }
    }

    /// Checks that the head has what the strategy requires.
    ///
    /// # Errors
    /// The head lacks something that the strategy requires. The text names the keys of both.
    pub fn check_head(&self, model: &ModelConfig) -> std::result::Result<(), String> {
        let (kind, towers) = self.towers();
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

    /// Returns `kind` and the values of `model.quality_tower` that the strategy supports. A quality
    /// branch that the strategy does not use would stay untrained and still multiply the scores.
    fn towers(&self) -> (&'static str, &'static [Tower]) {
        let branch = &[Tower::Reg, Tower::Cls];
        match self {
            Self::Dw(_) => ("dw", branch),
            Self::Fcos(_) => ("fcos", branch),
            Self::Atss(_) => ("atss", branch),
            Self::Gfl(_) => ("gfl", &[Tower::None, Tower::Distribution]),
            Self::Vfl(_) => ("vfl", &[Tower::None]),
            Self::Tal(_) => ("tal", &[Tower::None]),
            Self::AutoAssign(_) => ("autoassign", branch),
            Self::Paa(_) => ("paa", branch),
            Self::Ota(_) => ("ota", branch),
            Self::SimOta(_) => ("simota", branch),
            Self::Weighting(_) => ("weighting", branch),
        }
    }

    /// Whether the strategy records the positive and negative weights that
    /// [`BagWeights`](super::figures::bags::BagWeights) reads.
    pub fn has_bag_weights(&self) -> bool {
        matches!(self, Self::Dw(_) | Self::Weighting(_))
    }

    /// A warning about valid settings that exclude whole boxes from training, or that combine a
    /// strategy with a head other than its paper's.
    pub fn caution(&self, model: &ModelConfig) -> Option<String> {
        let text = match self {
            Self::Dw(c) => return c.caution(),
            Self::Fcos(c) => c.caution(model),
            Self::Atss(_) => AtssConfig::caution(model),
            Self::Gfl(_) => GflConfig::caution(model),
            Self::Vfl(_) => VflConfig::caution(model),
            Self::Tal(_) => TalConfig::caution(model),
            Self::AutoAssign(_) => AutoAssignConfig::caution(model),
            Self::Paa(_) => PaaConfig::caution(model),
            Self::Ota(_) => OtaConfig::caution(model),
            Self::SimOta(_) => SimotaConfig::caution(model),
            Self::Weighting(_) => WeightingConfig::caution(model),
        };
        text.map(|text| format!("assign.kind = \"{}\": {text}", self.towers().0))
    }

    /// The settings on one line, for the table of settings in the log.
    pub fn summary(&self) -> String {
        match self {
            Self::Dw(c) => c.summary(),
            Self::Fcos(c) => c.summary(),
            Self::Atss(c) => c.summary(),
            Self::Gfl(c) => c.summary(),
            Self::Vfl(c) => c.summary(),
            Self::Tal(c) => c.summary(),
            Self::AutoAssign(c) => c.summary(),
            Self::Paa(c) => c.summary(),
            Self::Ota(c) => c.summary(),
            Self::SimOta(c) => c.summary(),
            Self::Weighting(c) => c.summary(),
        }
    }
}
