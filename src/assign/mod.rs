//! Label assignment: which points are trained on which box, and with which weight.
//!
//! A strategy has two halves. Its [`Matcher`] depends on boxes and grid alone and runs in the
//! loader's threads. Its [`Criterion`] depends on the predictions and runs in the training thread,
//! on this rank's images only: it returns local sums and normalisers, which [`crate::loss::reduce`]
//! adds over all ranks. [`AssignConfig`] is the closed list of strategies: to add one, write a file
//! in [`strategies`] and add a variant here.
//!
//! ```
//! use dw::assign::{AssignConfig, ImageBoxes};
//! use dw::geometry::{Grid, level_sizes};
//! use dw::model::Params;
//! use tch::{Device, Kind};
//!
//! // The default strategy, dual weighting, for a network of 3 classes.
//! let mut params = Params::new(Kind::Float, Device::Cpu);
//! let strategy = AssignConfig::default().build(&mut params, 3);
//!
//! // The targets of one image of 32 x 32 pixels with one box.
//! let grid = Grid::centers(&level_sizes(32, 32));
//! let image = ImageBoxes { boxes: vec![[0.0, 0.0, 16.0, 16.0]], labels: vec![2], padded: None };
//! let targets = strategy.matcher.targets(&grid, &[image]);
//!
//! // Inside the box are four points of stride 8, at 4 and 12, and one point of stride 16, at 8.
//! let points = Vec::<i64>::try_from(&targets.pairs().point).unwrap();
//! assert_eq!(points, [0, 1, 4, 5, 16]);
//! ```

pub mod adaptive;
pub mod dense;
pub mod hard;
pub mod matrix;
pub mod mixture;
pub mod pairs;
pub mod points;
pub mod positives;
pub mod soft;
pub mod strategies;
pub mod transport;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::geometry::Grid;
use crate::loss::{Reduced, Term};
use crate::model::{Detector, Distances, Inference, ModelConfig, Params, Predictions, Tower};
use crate::{Result, torch};
pub use pairs::{PairTensors, Pairs};
pub use points::{PointTargets, PointTensors};
pub use strategies::atss::AtssConfig;
pub use strategies::autoassign::AutoAssignConfig;
pub use strategies::dw::{DwConfig, Formula, NegWeight, Prior};
pub use strategies::fcos::FcosConfig;
pub use strategies::gfl::GflConfig;
pub use strategies::ota::OtaConfig;
pub use strategies::paa::PaaConfig;
pub use strategies::simota::SimotaConfig;
pub use strategies::tal::TalConfig;
pub use strategies::vfl::VflConfig;
pub use strategies::weighting::WeightingConfig;

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

/// The strategy of one network: matcher, criterion and post-processing.
pub struct Strategy {
    /// Finds the targets, in the loader's threads.
    pub matcher: Arc<dyn Matcher>,
    /// Computes the terms of the loss, in the training thread.
    pub criterion: Box<dyn Criterion>,
    /// Post-processing of the predictions.
    pub inference: Inference,
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
    /// It has not. The text names the keys of both.
    pub fn check_head(&self, model: &ModelConfig) -> std::result::Result<(), String> {
        let (kind, needs_quality) = match self {
            Self::Dw(_) => ("dw", true),
            Self::Fcos(_) => ("fcos", true),
            Self::Atss(_) => ("atss", true),
            Self::Gfl(_) => ("gfl", false),
            Self::Vfl(_) => ("vfl", false),
            Self::Tal(_) => ("tal", false),
            Self::AutoAssign(_) => ("autoassign", true),
            Self::Paa(_) => ("paa", true),
            Self::Ota(_) => ("ota", true),
            Self::SimOta(_) => ("simota", true),
            Self::Weighting(_) => ("weighting", true),
        };
        let refuse = |needs: &str, key: &str, found: &dyn Debug| {
            let found = format!("{found:?}").to_lowercase();
            Err(format!("`assign.kind` = \"{kind}\" requires {needs}: `{key}`, found {found}"))
        };
        let (tower, distances) = (model.quality_tower, model.distances);
        match (needs_quality, tower == Tower::None) {
            (true, true) => {
                return refuse("a quality branch", "model.quality_tower` = `reg` or `cls", &tower);
            }
            (false, false) => {
                // It would not be trained, and would multiply the scores.
                return refuse("no quality branch", "model.quality_tower` = `none", &tower);
            }
            _ => {}
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

    /// A warning about valid settings that exclude whole boxes from training, or combine a strategy
    /// with another head than its paper's.
    pub fn caution(&self, model: &ModelConfig) -> Option<String> {
        match self {
            Self::Dw(c) => c.caution(),
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
        }
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

/// Ground truth of one image, after resizing and flipping.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImageBoxes {
    /// Boxes `[x1, y1, x2, y2]`, pixels of the network input.
    pub boxes: Vec<[f32; 4]>,
    /// Class of each box, `0..C`.
    pub labels: Vec<i64>,
    /// (height, width) of the image with its own padding to a multiple of 32, pixels, where the
    /// batch may be larger; `None` if the image fills the batch.
    pub padded: Option<(i64, i64)>,
}

impl Strategy {
    /// Configures a network for this strategy: the offset of its points within their cells, and the
    /// post-processing of its predictions.
    pub fn attach(&self, detector: &mut Detector) {
        detector.inference = self.inference;
        detector.offset = self.matcher.offset();
    }
}

/// The half of a strategy that depends on boxes and grid alone: finds the targets of a batch.
pub trait Matcher: Send + Sync {
    /// Offset of the points within their cells, see [`Grid::offset`]. The default is the centre.
    fn offset(&self) -> f64 {
        0.5
    }

    /// Finds the targets of a batch, in host memory.
    fn targets(&self, grid: &Grid, images: &[ImageBoxes]) -> Targets;
}

/// Targets of a batch, found by a matcher.
#[derive(Debug)]
pub enum Targets {
    /// Soft assignment: the (point, box) pairs of all bags.
    Pairs(PairTensors),
    /// Hard assignment: at most one box a point.
    Points(PointTensors),
}

impl Targets {
    /// Copies to `device`, with floats of `kind`; tensors that are there already are shared.
    #[must_use]
    pub fn to(&self, kind: Kind, device: Device) -> Self {
        match self {
            Self::Pairs(t) => Self::Pairs(t.to(kind, device)),
            Self::Points(t) => Self::Points(t.to(kind, device)),
        }
    }

    /// Moves the tensors to page-locked memory, from which copies to a GPU do not block the host.
    ///
    /// # Errors
    /// Out of memory.
    pub fn page_lock(&mut self) -> Result<()> {
        let tensors: Vec<&mut Tensor> = match self {
            Self::Pairs(t) => t.tensors_mut().into(),
            Self::Points(t) => t.tensors_mut().into(),
        };
        for t in tensors {
            *t = torch::page_locked(t)?;
        }
        Ok(())
    }

    /// The targets of a soft matcher.
    ///
    /// # Panics
    /// If the targets come from a hard matcher, that is, matcher and criterion do not fit together.
    pub fn pairs(&self) -> &PairTensors {
        match self {
            Self::Pairs(t) => t,
            Self::Points(_) => panic!("a soft criterion got the targets of a hard matcher"),
        }
    }

    /// The targets of a hard matcher.
    ///
    /// # Panics
    /// If the targets come from a soft matcher.
    pub fn points(&self) -> &PointTensors {
        match self {
            Self::Points(t) => t,
            Self::Pairs(_) => panic!("a hard criterion got the targets of a soft matcher"),
        }
    }
}

/// Progress of the run, for strategies that change during training.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Number of steps completed before this one.
    pub step: usize,
    /// Number of epochs completed before this one.
    pub epoch: usize,
    /// Total number of steps of the run.
    pub total_steps: usize,
    /// Seed of the run.
    pub seed: u64,
}

/// The half of a strategy that depends on predictions: computes the terms of the loss.
pub trait Criterion: Send {
    /// Computes the terms of the loss over this rank's images; `probe` records intermediate
    /// weights.
    ///
    /// Implementations must not read tensors back to the host, must be pure (the same arguments
    /// give the same terms), and must return a sum that is not finite if any prediction is NaN,
    /// without aborting.
    fn terms(
        &self,
        predicted: &Predictions,
        targets: &Targets,
        at: &Progress,
        probe: &mut dyn Probe,
    ) -> Vec<Term>;

    /// Called after each update with the loss over all ranks, to update running state. Like
    /// [`Criterion::terms`] it must not read tensors back to the host. State belongs in tensors
    /// that [`AssignConfig::build`] added to the network's parameters, because those are saved in
    /// checkpoints and resumed.
    fn after_step(&mut self, _: &Reduced) {}
}

/// Records named intermediate tensors of a criterion, for tests and pictures.
pub trait Probe {
    /// Called with a tensor that carries no gradient.
    fn record(&mut self, name: &'static str, value: &Tensor);
}

/// Records nothing.
impl Probe for () {
    fn record(&mut self, _: &'static str, _: &Tensor) {}
}

impl Probe for BTreeMap<&'static str, Tensor> {
    fn record(&mut self, name: &'static str, value: &Tensor) {
        self.insert(name, value.shallow_clone());
    }
}
