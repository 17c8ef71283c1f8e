//! The custom CUDA kernels, compiled as C++ for the CPU. They pass the checks that run at start-up
//! on a GPU, and fail them with a mistake in any kernel. A whole network has the same gradients as
//! without the kernels. (The golden tests run the kernels of the loss, too.)

#[path = "support/kernels.rs"]
mod support;

use std::sync::Arc;

use dw::assign::{AssignConfig, DwConfig, ImageBoxes, Prior, Progress};
use dw::config;
use dw::device::kernels::{SOURCE, check};
use dw::geometry::{Grid, level_sizes};
use dw::model::{ClassOutput, Detector, NormKind, Params, Predictions};
use dw::train::input::{Input, Pixels};
use dw::train::kernels::difference;
use dw::train::step::Step;
use dw_launch::World;
use support::use_on_cpu;
use tch::{Device, Kind, Tensor};

/// Mistakes in the kernels of the network: text of the source and its replacement.
const IN_NETWORK: [(&str, &str); 13] = [
    ("sums[1][i] += u * u;", "sums[1][i] += u;"),
    ("relu(affine.z(i, affine.h(i, v[i])))", "affine.z(i, affine.h(i, v[i]))"),
    ("sums[1][i] += g * h;", "sums[1][i] += g;"),
    ("(m1[i] + h * m2[i])", "m1[i]"),
    ("1.0 / sqrt(var + eps)", "1.0 / (var + eps)"),
    ("out[1] = (float)sums[1];", "out[1] = (float)sums[2];"),
    ("gamma_sum[c] += (float)sums[1];", "gamma_sum[c] = (float)sums[1];"),
    ("v[i] += b[i];", "v[i] += b[0];"),
    ("d[i] = behind_relu(v[i], d[i]);", ""),
    ("beta[row] - mean[row] * scale", "beta[row]"),
    ("weight_sum[start + i] += d * scale;", "weight_sum[start + i] += d;"),
    ("(all[0] - mean[row] * dbias[row])", "all[0]"),
    // Some threads of a block do not reach its barrier.
    ("if (threadIdx.x < n) all[", "if (threadIdx.x >= n) return; else all["),
];

/// Mistakes in the kernels of the loss.
const IN_LOSS: [(&str, &str); 12] = [
    ("(s.mu * 0.6f)", "s.mu"),
    ("o.iou < 0.5f ? 1.0f :", ""),
    ("negative += dw_negative(", "negative -= dw_negative("),
    ("(float)(sums[2] + sums[4] + invalid)", "(float)(sums[2] + invalid)"),
    ("removed += 1.0f - p_neg[u];", "removed += p_neg[u];"),
    ("last_pair[u]]", "last_pair[0]]"),
    ("sum += slope * score.by_quality();", "sum += slope;"),
    ("dcls[index[u]] = p_neg[u] * slope", "dcls[index[u]] = slope"),
    ("by_hull * h[other] * (1.0f - inside)", "by_hull * h[other]"),
    ("squared += off * off", "squared = off * off"),
    ("by_score * score.by_quality()", "by_score"),
    // A missing barrier.
    ("  __syncthreads();\n  return all[0];", "  return all[0];"),
];

/// All checks are one test, because kernels are set for the whole process.
#[test]
fn the_kernels_equal_the_operations_of_libtorch() {
    let without = [gradient(Kind::Double, Kind::Double), gradient(Kind::Float, Kind::BFloat16)];
    tch::manual_seed(1);
    use_on_cpu("", "");
    assert_eq!(check(Device::Cpu), Ok(()));
    let hard = DwConfig { prior: Prior::Threshold, prior_value: 0.4, ..DwConfig::default() };
    let steep = DwConfig { gamma1: 1.3, gamma2: 2.5, mu: 3.0, beta: 2.0, ..DwConfig::default() };
    for config in [DwConfig::default(), hard, steep] {
        let off = loss_difference(&config, 3, 64);
        assert!(off > 0.0 && off < 1e-4, "{off}: {config:?}");
    }
    // Several blocks, and several rows for each thread.
    let off = loss_difference(&DwConfig::default(), 80, 512);
    assert!(off > 0.0 && off < 1e-4, "{off}");
    predictions_that_are_not_finite();
    not_a_number_passes_the_relu();
    whole_network(&without);
    for (mistakes, in_loss) in [(&IN_NETWORK[..], false), (&IN_LOSS[..], true)] {
        for (from, to) in mistakes {
            assert!(SOURCE.to_str().unwrap().contains(from), "{from}");
            use_on_cpu(from, to);
            let passes = std::panic::catch_unwind(|| {
                if in_loss {
                    loss_difference(&DwConfig::default(), 3, 64) < 1e-3
                } else {
                    check(Device::Cpu).is_ok()
                }
            });
            assert!(!passes.unwrap_or(false), "not noticed: {to} instead of {from}");
        }
    }
}

/// Largest difference between the loss computed by kernels and by tensor operations. It is not 0,
/// because both round.
fn loss_difference(config: &DwConfig, classes: i64, side: i64) -> f64 {
    let mut params = Params::new(Kind::Float, Device::Cpu);
    let strategy = AssignConfig::Dw(config.clone()).build(&mut params, classes);
    difference(&strategy, classes, Device::Cpu, side)
}

/// NaN or infinity in any prediction makes all sums NaN, also in a batch without boxes.
fn predictions_that_are_not_finite() {
    let (grid, options) = (Grid::centers(&level_sizes(64, 64)), (Kind::Float, Device::Cpu));
    let mut params = Params::new(Kind::Float, Device::Cpu);
    let strategy = AssignConfig::default().build(&mut params, 3);
    let image = ImageBoxes { boxes: vec![[5., 5., 50., 60.]], labels: vec![1], padded: None };
    for images in [vec![image], vec![ImageBoxes::default()]] {
        let targets = strategy.matcher.targets(&grid, &images);
        for (input, value) in (0..3).flat_map(|i| [1.0, f64::NAN, f64::INFINITY].map(|v| (i, v))) {
            let tensor = |n: usize, shape: &[i64]| {
                let t = Tensor::ones(shape, options);
                let _ = t.view([-1]).narrow(0, 0, 1).fill_(if n == input { value } else { 1.0 });
                t
            };
            let points = grid.num_points();
            let predicted = Predictions {
                cls: tensor(0, &[1, points, 3]),
                distances: tensor(1, &[1, points, 4]),
                quality: Some(tensor(2, &[1, points])),
                cls_is: ClassOutput::Logit,
                first: None,
                bins: None,
                grid: grid.clone(),
            };
            assert!(dw_torch::has_dw_loss(&predicted.cls));
            let at = Progress::default();
            for term in strategy.criterion.terms(&predicted, &targets, &at, &mut ()) {
                let sum = term.sum.double_value(&[]);
                assert_eq!(sum.is_finite(), value == 1.0, "{value} in input {input}: {sum}");
                assert!(value == 1.0 || sum.is_nan());
            }
        }
    }
}

/// A ReLU passes NaN on, as in libtorch.
fn not_a_number_passes_the_relu() {
    let x = Tensor::ones([1, 8, 2, 2], (Kind::Float, Device::Cpu));
    let _ = x.get(0).get(0).get(0).get(0).fill_(f64::NAN);
    let (gamma, beta) = (
        Tensor::ones([8], (Kind::Float, Device::Cpu)),
        Tensor::zeros([8], (Kind::Float, Device::Cpu)),
    );
    let y = dw_torch::group_norm_relu(&x, None, &gamma, &beta, 1);
    assert_eq!(y.isnan().sum(Kind::Int64).int64_value(&[]), 32);
}

/// Compares gradients of the small network, with frozen batch norm in the backbone and group norm
/// in the head: with kernels in f32 and bf16, and without kernels in f64 and bf16.
fn whole_network([in_f64, in_bf16]: &[Tensor; 2]) {
    let in_f32 = gradient(Kind::Float, Kind::Float);
    let off = ((&in_f32 - in_f64).norm() / in_f64.norm()).double_value(&[]);
    assert!(off < 1e-3, "f32: {off} of the norm");
    // In bf16, rounding moves activations across the kink of a ReLU, so the distance from f64 is
    // compared with that without kernels.
    let cosine = |t: &Tensor| (t.dot(in_f64) / (t.norm() * in_f64.norm())).double_value(&[]);
    let (found, expected) = (cosine(&gradient(Kind::Float, Kind::BFloat16)), cosine(in_bf16));
    assert!((found - expected).abs() < 0.05, "bf16: cosine {found}, without kernels {expected}");
}

/// The gradient of one step as one vector, in f64.
fn gradient(kind: Kind, activations: Kind) -> Tensor {
    let config = config::load("smoke", &[]).unwrap();
    let mut model = config.model;
    model.norm = NormKind::FrozenBn;
    // The same weights in every precision.
    tch::manual_seed(3);
    let source = Detector::new(&model, 3, Kind::Double, Device::Cpu);
    let mut net = Detector::new(&model, 3, kind, Device::Cpu);
    for (to, from) in net.params.entries.iter().zip(&source.params.entries) {
        tch::no_grad(|| to.tensor.shallow_clone().copy_(&from.tensor));
    }
    net.activations = activations;
    let strategy = config.assign.build(&mut net.params, 3);
    let mut step = Step::new(net, strategy, &config.train, &Arc::new(World::solo())).unwrap();
    let truth = [
        ImageBoxes { boxes: vec![[10., 12., 60., 70.]], labels: vec![0], padded: None },
        ImageBoxes { boxes: vec![[5., 5., 30., 40.]], labels: vec![1], padded: None },
    ];
    let targets = step.matcher().targets(&Grid::centers(&level_sizes(96, 128)), &truth);
    tch::manual_seed(4);
    let images = Tensor::rand([2, 3, 96, 128], (Kind::Double, Device::Cpu)).to_kind(kind);
    let images = Pixels::Normalised(&images);
    let input = Input { images, targets: &targets, at: Progress::default() };
    let predicted = step.forward(images);
    let loss = step.loss(&predicted, &input, None, false).unwrap();
    step.backward(&loss, &[]).unwrap();
    let entries = step.detector.params.entries.iter().map(|e| e.tensor.grad());
    let flat = |t: Tensor| t.reshape([-1]).to_kind(Kind::Double);
    Tensor::cat(&entries.filter(Tensor::defined).map(flat).collect::<Vec<_>>(), 0)
}
