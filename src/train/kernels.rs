//! Compares the loss computed by the custom kernels with that computed by tensor operations, at
//! start, on the device in use.

use tch::{Device, Kind, Tensor};

use crate::assign::{ImageBoxes, Progress, Strategy};
use crate::device::kernels::{noise, relative_difference};
use crate::geometry::{Grid, level_sizes};
use crate::model::{ClassOutput, Predictions};

/// Largest difference that is accepted, relative to the norm.
const TOLERANCE: f64 = 1e-3;

/// Enables the kernels for the loss of a network of `classes` classes if they are loaded and agree
/// with the tensor operations on a small batch, within `TOLERANCE`. A larger difference is logged.
pub fn prepare(strategy: &Strategy, classes: i64, device: Device) {
    if !dw_torch::has_kernels() || !strategy.criterion.has_kernels() {
        return;
    }
    let off = difference(strategy, classes, device, 256);
    let right = off <= TOLERANCE;
    // A failed launch disables the kernels.
    let usable = dw_torch::has_dw_loss(&Tensor::zeros([1], (Kind::Float, device)));
    dw_torch::use_loss_kernels(right && usable);
    if !right {
        tracing::warn!(
            "the custom CUDA kernels are disabled for the loss, which makes training \
             slower: they differ from libtorch's operations by {off:.1e} of the norm"
        );
    }
}

/// Largest difference between the results of the kernels and of tensor operations, relative to the
/// norm of each term, normaliser and gradient, for images of `side` x `side` pixels; NaN if any
/// result is NaN. Leaves the kernels enabled.
pub fn difference(strategy: &Strategy, classes: i64, device: Device, side: i64) -> f64 {
    let by = |kernels: bool| {
        dw_torch::use_loss_kernels(kernels);
        results(strategy, classes, device, side)
    };
    let (expected, found) = (by(false), by(true));
    let off = |(f, e): (&Tensor, &Tensor)| relative_difference(f, e);
    let worst = |a: f64, b: f64| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) };
    found.iter().zip(&expected).map(off).fold(0.0, worst)
}

/// Terms, normalisers and gradients of a small batch, in f64 on the host.
fn results(strategy: &Strategy, classes: i64, device: Device, side: i64) -> Vec<Tensor> {
    let sizes = level_sizes(side, side);
    let grid = Grid { offset: strategy.matcher.offset(), ..Grid::centers(&sizes) };
    // The boxes below are given for images with a side of 64 pixels.
    let scaled = |b: [f32; 4]| b.map(|v| v * side as f32 / 64.0);
    let image = |boxes: &[([f32; 4], i64)]| ImageBoxes {
        boxes: boxes.iter().map(|b| scaled(b.0)).collect(),
        labels: boxes.iter().map(|b| b.1 % classes).collect(),
        padded: None,
    };
    let images = [
        image(&[([3., 5., 50., 60.], 1), ([20., 2., 62., 44.], 1), ([9., 30., 25., 41.], 0)]),
        image(&[]),
        image(&[([0., 0., 40., 33.], 2)]),
    ];
    let predicted = sample(&grid, images.len() as i64, classes, side as f64, device);
    let targets = strategy.matcher.targets(&grid, &images).to(Kind::Float, device);
    let terms = strategy.criterion.terms(&predicted, &targets, &Progress::default(), &mut ());
    // Each term has a different weight.
    let weighted = terms.iter().zip([1.0, -0.7, 0.3, 0.6, -1.2]).map(|(t, w)| &t.sum * w);
    weighted.reduce(|a, b| a + b).expect("a term").backward();
    let mut out: Vec<Tensor> = terms.iter().map(|t| t.sum.detach()).collect();
    out.extend(terms.into_iter().map(|t| t.by.value));
    let Predictions { cls, distances, quality, .. } = &predicted;
    out.extend([cls, distances].into_iter().chain(quality).map(Tensor::grad));
    out.into_iter().map(|t| t.to_device(Device::Cpu).to_kind(Kind::Double)).collect()
}

/// Predictions of a batch whose boxes overlap the ground truth to varying degrees.
fn sample(grid: &Grid, images: i64, classes: i64, side: f64, device: Device) -> Predictions {
    let points = grid.num_points();
    let leaf = |t: Tensor| t.to_kind(Kind::Float).to_device(device).set_requires_grad(true);
    Predictions {
        cls: leaf(noise(&[images, points, classes], 1) * 3.0 - 1.0),
        distances: leaf((noise(&[images, points, 4], 2) + 1.0) * (side * 0.3)),
        quality: Some(leaf(noise(&[images, points], 3) * 2.0)),
        cls_is: ClassOutput::Logit,
        first: None,
        bins: None,
        grid: grid.clone(),
    }
}
