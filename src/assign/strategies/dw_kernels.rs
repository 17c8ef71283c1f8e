//! The released formula of dual weighting by the program's own kernels: ten launches instead of
//! some 280, and one pass over the logits in each direction.

use tch::{Device, Kind, Tensor};

use super::dw::{DualWeighting, DwConfig, Formula, Prior};
use crate::assign::soft::CenterPrior;
use crate::assign::{Criterion, ImageBoxes, PairTensors, Probe, Progress, Targets};
use crate::geometry::{Grid, level_sizes};
use crate::model::{ClassOutput, Predictions};
use crate::torch::{self, DwLoss};

/// Largest difference from the tensor operations in f64 that is accepted, relative to the norm.
const TOLERANCE: f64 = 1e-3;

/// Sum and normaliser of each term as `released` in `dw.rs` returns them; `None` if there are no
/// kernels for these predictions.
pub(super) fn released(
    config: &DwConfig,
    prior: &CenterPrior,
    predicted: &Predictions,
    pairs: &PairTensors,
    probe: &mut dyn Probe,
) -> Option<[(Tensor, Tensor); 3]> {
    let more = predicted.first.is_some() || predicted.bins.is_some();
    let logits = predicted.cls_is == ClassOutput::Logit;
    if more || !logits || !torch::has_dw_loss(&predicted.cls) {
        return None;
    }
    let prior_above = match config.prior {
        Prior::Soft => -1.0,
        _ => config.prior_value,
    };
    let settings = [config.beta, config.mu, config.gamma1, config.gamma2, prior_above];
    let PairTensors { point, gt, labels, target, stride, logit_index, logit_last_pair, .. } = pairs;
    let DwLoss { cls_pos, loc, cls_neg, removed, w_pos, p_neg } = torch::dw_loss(
        &predicted.cls,
        &predicted.distances,
        predicted.quality.as_ref(),
        [
            point,
            gt,
            labels,
            target,
            stride,
            &prior.mean,
            &prior.sigma,
            logit_index,
            logit_last_pair,
        ],
        settings.map(|v| v as f32),
    );
    if probe.is_active() {
        let score_u = score_of(predicted, logit_index);
        probe.record("w_neg", &(&p_neg * score_u.pow_tensor_scalar(config.gamma2)));
        probe.record("w_pos", &w_pos);
        probe.record("p_neg", &p_neg);
    }
    let boxes = Tensor::full_like(&removed, pairs.labels.numel() as f64);
    Some([(cls_pos, boxes.shallow_clone()), (loc, boxes), (cls_neg, removed)])
}

/// Scores of the logits at these positions, without gradient.
fn score_of(predicted: &Predictions, index: &Tensor) -> Tensor {
    let cls = predicted.cls.detach();
    let classes = cls.size()[2];
    let score = cls.reshape([-1]).index_select(0, index).sigmoid();
    match &predicted.quality {
        Some(quality) => {
            let row = index.divide_scalar_mode(classes, "floor");
            score * quality.detach().reshape([-1]).index_select(0, &row).sigmoid()
        }
        None => score,
    }
}

/// Whether the kernels compute this loss on a device: they are loaded, and equal the tensor
/// operations on a small input. A difference is logged.
pub(super) fn can_be_used(config: &DwConfig, device: Device) -> bool {
    let none = Tensor::zeros([1], (Kind::Float, device));
    if config.formula != Formula::Released || !torch::has_dw_loss(&none) {
        return false;
    }
    let off = config.kernel_difference(device);
    let right = off <= TOLERANCE;
    if !right {
        tracing::warn!(
            "the program's own CUDA kernels for dual weighting are not used, which makes training \
             slower: they differ from libtorch's operations by {off:.1e} of the norm"
        );
    }
    right
}

impl DwConfig {
    /// Largest difference between the kernels in f32 and tensor operations in f64, relative to the
    /// norm of each term and gradient, on a small batch.
    pub fn kernel_difference(&self, device: Device) -> f64 {
        let (found, expected) = (results(self, device, true), results(self, device, false));
        let off = |(f, e): (&Tensor, &Tensor)| {
            f64::try_from((f - e).norm() / e.norm()).unwrap_or(f64::NAN)
        };
        let worst = |a: f64, b: f64| if b.is_nan() { b } else { a.max(b) };
        found.iter().zip(&expected).map(off).fold(0.0, worst)
    }
}

/// Terms, normalisers and gradients of a small batch: by kernels in f32, or else by tensor
/// operations in f64.
fn results(config: &DwConfig, device: Device, kernels: bool) -> Vec<Tensor> {
    let kind = if kernels { Kind::Float } else { Kind::Double };
    let classes = 3;
    let grid = Grid::centers(&level_sizes(64, 64));
    let image = |boxes: &[[f32; 4]], labels: &[i64]| ImageBoxes {
        boxes: boxes.to_vec(),
        labels: labels.to_vec(),
        padded: None,
    };
    let images = [
        image(&[[3., 5., 50., 60.], [20., 2., 62., 44.], [9., 30., 25., 41.]], &[1, 1, 0]),
        image(&[], &[]),
        image(&[[0., 0., 40., 33.]], &[2]),
    ];
    let predicted = sample(&grid, images.len() as i64, classes, kind, device);
    let options = (kind, device);
    let prior = CenterPrior {
        mean: noise(&[classes, 2], 4, options) * 0.2,
        sigma: noise(&[classes, 2], 5, options) * 0.2 + 1.1,
    };
    let targets = Targets::Pairs(config.pairs(&grid, classes, &images).tensors());
    let criterion = DualWeighting { config: config.clone(), prior, kernels };
    let at = Progress::default();
    let terms = criterion.terms(&predicted, &targets.to(kind, device), &at, &mut ());
    // The terms count differently.
    let loss = terms.iter().zip([1.0, -0.7, 0.3]).map(|(t, factor)| &t.sum * factor);
    loss.reduce(|a, b| a + b).unwrap_or_default().backward();
    let mut out: Vec<Tensor> = terms.iter().map(|t| t.sum.detach()).collect();
    out.extend(terms.into_iter().map(|t| t.by.value));
    let Predictions { cls, distances, quality, .. } = &predicted;
    out.extend([cls, distances].into_iter().chain(quality).map(Tensor::grad));
    out.into_iter().map(|t| t.to_kind(Kind::Double)).collect()
}

/// Predictions of a batch whose boxes overlap the ground truth to any degree.
fn sample(grid: &Grid, images: i64, classes: i64, kind: Kind, device: Device) -> Predictions {
    let (points, options) = (grid.num_points(), (kind, device));
    let leaf = |t: Tensor| t.set_requires_grad(true);
    Predictions {
        cls: leaf(noise(&[images, points, classes], 1, options) * 3.0 - 1.0),
        distances: leaf(noise(&[images, points, 4], 2, options) * 20.0 + 18.0),
        quality: Some(leaf(noise(&[images, points], 3, options) * 2.0)),
        cls_is: ClassOutput::Logit,
        first: None,
        bins: None,
        grid: grid.clone(),
    }
}

/// Numbers like random ones from -1 to 1, but the same in every run and, rounded to f32, on every
/// device.
fn noise(shape: &[i64], seed: i64, (kind, device): (Kind, Device)) -> Tensor {
    let count: i64 = shape.iter().product();
    let at = Tensor::arange(count, (Kind::Double, Device::Cpu)) + seed as f64 * 1e5;
    let uniform = ((at * 12.9898).sin() * 43758.5453).frac();
    uniform.view(shape).to_kind(Kind::Float).to_device(device).to_kind(kind)
}
