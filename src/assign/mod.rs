//! Label assignment: which points learn from which box, and how much.
//!
//! A strategy has two halves. Its [`Matcher`] looks at boxes and grid alone and runs in the loader's threads; its
//! [`Criterion`] looks at predictions and runs in the training thread, on this rank's images only: it returns local sums
//! and local normalisers, which [`crate::loss::reduce`] adds over all ranks. [`AssignConfig`] is the closed list of
//! strategies: to add one, write a file in [`strategies`] and a variant here.

pub mod hard;
pub mod pairs;
pub mod points;
pub mod strategies;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::geometry::Grid;
use crate::loss::{Loss, Term};
use crate::model::{Detector, ModelConfig, Params, Predictions, Rank};
pub use pairs::{PairTensors, Pairs};
pub use points::{PointTargets, PointTensors};
pub use strategies::dw::{DwConfig, Formula, NegWeight, Prior};
pub use strategies::fcos::FcosConfig;

/// `[assign]`: the strategy and its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum AssignConfig {
    /// Dual weighting (Li et al., CVPR 2022).
    Dw(DwConfig),
    /// FCOS's own assignment (Tian et al., ICCV 2019).
    Fcos(FcosConfig),
}

impl Default for AssignConfig {
    fn default() -> Self {
        Self::Dw(DwConfig::default())
    }
}

/// Matcher, criterion and ranking of one network.
pub struct Strategy {
    /// The half that runs in the loader's threads.
    pub matcher: Arc<dyn Matcher>,
    /// The half that runs in the training thread.
    pub criterion: Box<dyn Criterion>,
    /// How predictions become detections.
    pub rank: Rank,
}

impl AssignConfig {
    /// Every strategy with its defaults.
    pub fn all() -> [Self; 2] {
        [Self::Dw(DwConfig::default()), Self::Fcos(FcosConfig::default())]
    }

    /// The strategy for a network of `classes` classes, whose parameters its own are added to.
    pub fn build(&self, params: &mut Params, classes: i64) -> Strategy {
        match self {
            Self::Dw(c) => c.build(params, classes),
            Self::Fcos(c) => c.build(classes),
        }
    }

    /// Refuses values and combinations that mean nothing.
    ///
    /// # Errors
    /// The key, what it must be (with its unit), and what it is.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Dw(c) => c.check(),
            Self::Fcos(c) => c.check(),
        }
    }

    /// A warning about valid settings of strategy and head that exclude whole boxes or do not belong together.
    pub fn caution(&self, model: &ModelConfig) -> Option<String> {
        match self {
            Self::Dw(c) => c.caution(),
            Self::Fcos(c) => c.caution(model),
        }
    }

    /// The settings on one line, for the settings table.
    pub fn summary(&self) -> String {
        match self {
            Self::Dw(c) => c.summary(),
            Self::Fcos(c) => c.summary(),
        }
    }
}

/// Ground truth of one image, after resizing and flipping.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImageBoxes {
    /// `[x1, y1, x2, y2]`, pixels of the network input.
    pub boxes: Vec<[f32; 4]>,
    /// Class of each box, `0..C`.
    pub labels: Vec<i64>,
}

impl Strategy {
    /// Makes a network predict for this strategy: where its points lie, and how its predictions become detections.
    pub fn attach(&self, detector: &mut Detector) {
        detector.rank = self.rank;
        detector.offset = self.matcher.offset();
    }
}

/// The half of a strategy that depends on boxes and grid alone.
pub trait Matcher: Send + Sync {
    /// Place of the points in their cells, see [`Grid`]: the centre, unless the strategy wants another.
    fn offset(&self) -> f64 {
        0.5
    }

    /// Targets of a batch, in host memory.
    fn targets(&self, grid: &Grid, images: &[ImageBoxes]) -> Targets;
}

/// What a matcher found for a batch.
#[derive(Debug)]
pub enum Targets {
    /// Soft assignment: every (point, box) pair of a bag.
    Pairs(PairTensors),
    /// Hard assignment: at most one box a point.
    Points(PointTensors),
}

impl Targets {
    /// On `device`, with floats of `kind`; shares what is there already.
    #[must_use]
    pub fn to(&self, kind: Kind, device: Device) -> Self {
        match self {
            Self::Pairs(t) => Self::Pairs(t.to(kind, device)),
            Self::Points(t) => Self::Points(t.to(kind, device)),
        }
    }

    /// Pairs of a soft matcher.
    ///
    /// # Panics
    /// The targets are of a hard matcher: a strategy's two halves do not belong together.
    pub fn pairs(&self) -> &PairTensors {
        match self {
            Self::Pairs(t) => t,
            Self::Points(_) => panic!("targets of a hard matcher for a soft criterion"),
        }
    }

    /// Points of a hard matcher.
    ///
    /// # Panics
    /// The targets are of a soft matcher.
    pub fn points(&self) -> &PointTensors {
        match self {
            Self::Points(t) => t,
            Self::Pairs(_) => panic!("targets of a soft matcher for a hard criterion"),
        }
    }
}

/// How far a run is, for strategies that change on the way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Steps done before this one.
    pub step: usize,
    /// Epochs done before this one.
    pub epoch: usize,
    /// Steps of the run.
    pub total_steps: usize,
    /// Seed of the run.
    pub seed: u64,
}

/// The half of a strategy that depends on predictions.
pub trait Criterion: Send {
    /// The terms of the loss of this rank's images. Nothing is read back to the host, and a number that is not finite
    /// comes out in a sum. Pure: the same arguments give the same terms. `probe` sees weights on the way.
    fn terms(
        &self,
        predicted: &Predictions,
        targets: &Targets,
        at: &Progress,
        probe: &mut dyn Probe,
    ) -> Vec<Term>;

    /// Called after each update with the loss over all ranks, for running state. State belongs in tensors that
    /// [`AssignConfig::build`] added to the network's parameters: those are saved and resumed.
    fn after_step(&mut self, _: &Loss) {}
}

/// Sees tensors of a criterion by name: for tests and pictures.
pub trait Probe {
    /// Called with a tensor without gradient.
    fn see(&mut self, name: &'static str, value: &Tensor);
}

/// Ignores everything.
impl Probe for () {
    fn see(&mut self, _: &'static str, _: &Tensor) {}
}

impl Probe for BTreeMap<&'static str, Tensor> {
    fn see(&mut self, name: &'static str, value: &Tensor) {
        self.insert(name, value.shallow_clone());
    }
}
