//! Label assignment: which points are trained on which box, and with which weight.
//!
//! A strategy has two halves. Its [`Matcher`] depends on boxes and grid alone and runs in the
//! loader's threads. Its [`Criterion`] depends on the predictions and runs in the training thread,
//! on this rank's images only: it returns local sums and normalisers, which [`crate::loss::reduce`]
//! adds over all ranks. Its settings are a [`StrategyConfig`]. [`AssignConfig`] is the closed list
//! of strategies: to add one, write a file in [`strategies`] and add a variant in [`config`].
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
pub mod config;
pub mod dense;
pub mod figures;
pub mod hard;
pub mod kernels;
pub mod matrix;
pub mod mixture;
pub mod pairs;
pub mod points;
pub mod positives;
pub mod smallest_box;
pub mod soft;
pub mod strategies;
pub mod transport;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::geometry::Grid;
use crate::loss::{Reduced, Term};
use crate::model::{Detector, Inference, ModelConfig, Params, Predictions, Tower};
pub use config::AssignConfig;
pub use pairs::{PairTensors, Pairs};
pub use points::{PointTargets, PointTensors};
pub use soft::SoftInputs;
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

/// Whether a tensor of a weight file is the state of a strategy, which is used in training only.
pub fn is_state(name: &str) -> bool {
    name.contains(".center_prior.")
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

/// The settings of a strategy: a section `[assign]` without `kind`.
pub trait StrategyConfig {
    /// Value of `assign.kind`.
    fn kind(&self) -> &'static str;

    /// Values of `model.quality_tower` that the strategy supports, by default those with a quality
    /// branch. A branch that the strategy does not use would stay untrained and still multiply the
    /// scores.
    fn towers(&self) -> &'static [Tower] {
        &[Tower::Reg, Tower::Cls]
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// A value is out of range or does not fit another setting. The text names the key, the
    /// expected values with their unit, and the value found.
    fn check(&self) -> std::result::Result<(), String> {
        Ok(())
    }

    /// A warning about valid settings that exclude whole boxes from training, or about a head other
    /// than that of the published results ([`ModelConfig::unlike`]).
    fn caution(&self, model: &ModelConfig) -> Option<String>;

    /// The settings on one line, for the table of settings in the log.
    fn summary(&self) -> String;

    /// Builds the strategy for a network of `classes` classes. Its own parameters and state are
    /// added to `params`, the network's.
    fn build(&self, params: &mut Params, classes: i64) -> Strategy;
}

/// Ground truth of one image, after resizing and flipping.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImageBoxes {
    /// Boxes `[x1, y1, x2, y2]`, pixels of the network input.
    pub boxes: Vec<[f32; 4]>,
    /// Class of each box, `0..C`.
    pub labels: Vec<i64>,
    /// (height, width) of the image, padded to a multiple of 32, pixels, if the batch may be
    /// larger; `None` if the image fills the batch.
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
    /// Hard assignment: at most one box per point.
    Points(PointTensors),
}

impl Targets {
    /// Copies to `device`, with floats of `kind`. Tensors that need no conversion are shared.
    #[must_use]
    pub fn to(&self, kind: Kind, device: Device) -> Self {
        let Ok(copy) = self.map(|t| {
            let there = dw_torch::upload(t, device);
            Ok::<_, Infallible>(if t.is_floating_point() { there.to_kind(kind) } else { there })
        });
        copy
    }

    /// Moves the tensors to page-locked memory, from which copies to a GPU do not block the host.
    ///
    /// # Errors
    /// Out of memory.
    pub fn page_lock(&mut self) -> Result<()> {
        *self = self.map(dw_torch::page_locked)?;
        Ok(())
    }

    /// Applies `f` to every tensor.
    fn map<E>(
        &self,
        f: impl Fn(&Tensor) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<Self, E> {
        Ok(match self {
            Self::Pairs(t) => Self::Pairs(t.map(f)?),
            Self::Points(t) => Self::Points(t.map(f)?),
        })
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
    /// give the same terms), and must return a sum that is not finite if any prediction is NaN or
    /// infinite, without aborting ([`Predictions::nan_if_invalid`]).
    fn terms(
        &self,
        predicted: &Predictions,
        targets: &Targets,
        at: &Progress,
        probe: &mut dyn Probe,
    ) -> Vec<Term>;

    /// Whether the custom kernels can compute the terms from class logits ([`kernels`]).
    fn has_kernels(&self) -> bool {
        false
    }

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

    /// Whether values are recorded at all, so that a criterion can skip values that take time to
    /// compute.
    fn is_active(&self) -> bool {
        true
    }
}

/// Records nothing.
impl Probe for () {
    fn record(&mut self, _: &'static str, _: &Tensor) {}

    fn is_active(&self) -> bool {
        false
    }
}

impl Probe for BTreeMap<&'static str, Tensor> {
    fn record(&mut self, name: &'static str, value: &Tensor) {
        self.insert(name, value.shallow_clone());
    }
}
