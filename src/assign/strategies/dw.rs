//! Dual weighting (Li et al., CVPR 2022), both formulas, over the list of (point, box) pairs.
//!
//! Shapes: N pairs, U cells (a cell is a (point, class) covered by some box of that class), G boxes, B images,
//! P points, C classes. Weights carry no gradient.

use std::sync::Arc;

use tch::Tensor;

pub use super::dw_config::{DwConfig, Formula, NegWeight, Prior};
use crate::assign::pairs::{Inside, PairTensors, Pairs};
use crate::assign::{Criterion, ImageBoxes, Matcher, Probe, Progress, Strategy, Targets};
use crate::geometry::{Grid, iou_and_giou};
use crate::loss::functions::bce;
use crate::loss::{Normaliser, Term};
use crate::model::params::Role;
use crate::model::{Params, Predictions, Rank};

/// Floor of areas in denominators: the released code's, and the paper reading's.
const AREA_EPS: f64 = 1e-6;
const PAPER_AREA_EPS: f64 = 1e-9;
/// Largest distance that takes part in the loss, pixels.
const LARGEST_SIDE: f64 = 1e9;
/// Keeps 0 / 0 at 1 (FORMAT of the released code).
const TINY: f64 = 1e-12;
/// Factor of both positive terms in the released code.
const POSITIVE_SCALE: f64 = 0.25;
/// Released code: IoU under which a point is surely negative; the end of P_neg's ramp in the paper.
const SURELY_NEGATIVE: f64 = 0.5;
const SURELY_POSITIVE: f64 = 0.95;
/// Focal loss outside the bags (paper).
const FOCAL_ALPHA: f64 = 0.25;
const FOCAL_GAMMA: f64 = 2.0;

impl DwConfig {
    /// The strategy's halves. The centre prior of the released formula is a state of the network: mean and sigma of each
    /// class, which is never trained.
    pub(crate) fn build(&self, params: &mut Params, classes: i64) -> Strategy {
        let mean = params.buffer("bbox_head.center_prior.mean", &[classes, 2], 0.0, Role::Constant);
        // 1 + 0.11, added in f32 as the released code does.
        let start = f64::from(1.0f32 + 0.11f32);
        let sigma =
            params.buffer("bbox_head.center_prior.sigma", &[classes, 2], start, Role::Constant);
        let matcher = Arc::new(Bags { config: self.clone(), classes });
        let criterion =
            Box::new(DualWeighting { config: self.clone(), prior: CenterPrior { mean, sigma } });
        Strategy { matcher, criterion, rank: Rank::Score }
    }

    /// The pairs of a batch: every point inside a box, or with the paper's formula those that the centre prior keeps.
    pub fn pairs(&self, grid: &Grid, classes: i64, images: &[ImageBoxes]) -> Pairs {
        Pairs::new(grid, classes, images, &|found, stride| self.keep(found, stride))
    }

    fn keep(&self, found: &mut Vec<Inside>, stride: i64) {
        if self.formula == Formula::Released || self.prior == Prior::Soft {
            return;
        }
        // Distance from the centre in strides: half the difference of opposite sides, along each axis.
        let r =
            |[l, t, r, b]: [f32; 4]| f64::from(l - r).hypot(f64::from(t - b)) / (2 * stride) as f64;
        if self.prior == Prior::Threshold {
            found.retain(|p| r(p.1) <= self.prior_value);
        } else {
            // Stable: the lower point index first on ties.
            found.sort_by(|a, b| r(a.1).total_cmp(&r(b.1)));
            found.truncate(self.prior_value as usize);
            found.sort_by_key(|p| p.0);
        }
    }
}

/// Finds the bag of points of each box.
struct Bags {
    config: DwConfig,
    classes: i64,
}

impl Matcher for Bags {
    fn targets(&self, grid: &Grid, images: &[ImageBoxes]) -> Targets {
        Targets::Pairs(self.config.pairs(grid, self.classes, images).tensors())
    }
}

/// The centre prior of each class, `[C, 2]` (x, y) in strides.
#[derive(Debug)]
struct CenterPrior {
    /// Shift of the centre.
    mean: Tensor,
    /// Width.
    sigma: Tensor,
}

/// Weighs the points of each bag.
struct DualWeighting {
    config: DwConfig,
    prior: CenterPrior,
}

/// What a batch looks like to the loss. Tensors are on one device and of one kind.
struct Inputs<'a> {
    /// Class logits `[B, P, C]`.
    cls: &'a Tensor,
    /// Boxes and their pairs.
    pairs: &'a PairTensors,
    /// The prior of the released formula.
    prior: &'a CenterPrior,
}

impl Criterion for DualWeighting {
    /// Eq. 3-12 (`paper`), or what the authors' code computes (`released`; `docs/formulas.md` lists every difference).
    /// The probe sees `positive`, the positive weight of each pair `[N]`, and `negative`, the weight of each cell in the
    /// negative loss `[U]`: P_neg (released), w_neg (paper).
    fn terms(
        &self,
        predicted: &Predictions,
        targets: &Targets,
        _: &Progress,
        probe: &mut dyn Probe,
    ) -> Vec<Term> {
        let pairs = targets.pairs();
        let (q, poison_q) =
            without_nan(&(predicted.cls.sigmoid() * predicted.quality.sigmoid().unsqueeze(-1)));
        // Sides beyond any image would overflow when they are multiplied, in f32.
        let (distances, poison_d) = without_nan(&predicted.distances);
        let distances = distances.clamp_max(LARGEST_SIDE);
        let x = Inputs { cls: &predicted.cls, pairs, prior: &self.prior };
        let mut terms = match self.config.formula {
            Formula::Released => {
                released(&self.config, &x, &q, &Geometry::new(&distances, pairs, AREA_EPS), probe)
            }
            Formula::Paper => paper(
                &self.config,
                &x,
                &q,
                &Geometry::new(&distances, pairs, PAPER_AREA_EPS),
                probe,
            ),
        };
        for t in &mut terms {
            t.sum += &poison_q + &poison_d;
        }
        terms
    }
}

/// Predicted box against ground truth, of every pair.
///
/// Both are distances from the same point inside, so neither box is decoded. (The reference decodes both, which rounds
/// at the size of the coordinates instead of the boxes' size; in exact numbers it is the same.)
struct Geometry {
    /// `[N]`, no gradient.
    iou: Tensor,
    /// `[N]`, 1 - GIoU.
    giou_loss: Tensor,
}

/// Rows `[R, C]` picked by `index` `[N]`, transposed: `[C, N]`. One flat look-up, whose gradient is one flat addition;
/// the gradient of looking up whole rows is added row by row, which is far slower.
fn columns(rows: &Tensor, index: &Tensor) -> Tensor {
    let (count, columns) = (rows.size()[0], rows.size()[1]);
    let offsets = Tensor::arange(columns, (index.kind(), index.device())) * count;
    let index = (offsets.unsqueeze(1) + index.unsqueeze(0)).view([-1]);
    rows.tr().reshape([-1]).index_select(0, &index).view([columns, -1])
}

impl Geometry {
    fn new(distances: &Tensor, pairs: &PairTensors, eps: f64) -> Self {
        let predicted = columns(&distances.reshape([-1, 4]), &pairs.point);
        let (iou, giou) = iou_and_giou(&predicted, &pairs.target, eps);
        Self { iou: iou.detach(), giou_loss: -(giou - 1.0) }
    }
}

/// Offset of each pair's point from the box's centre in strides, `[2, N]`: half the difference of opposite sides.
fn offset(pairs: &PairTensors) -> Tensor {
    (pairs.target.narrow(0, 0, 2) - pairs.target.narrow(0, 2, 2)) / (&pairs.stride * 2.0)
}

/// Sum over the pairs of each box, handed back to the pairs `[N]`.
fn sum_per_box(values: &Tensor, pairs: &PairTensors) -> Tensor {
    let sums = Tensor::zeros(pairs.labels.size(), (values.kind(), values.device()));
    sums.index_add(0, &pairs.gt, values).index_select(0, &pairs.gt)
}

/// Minimum over the pairs of each box, handed back to the pairs `[N]`.
fn min_per_box(values: &Tensor, pairs: &PairTensors) -> Tensor {
    let start = Tensor::full(pairs.labels.size(), f64::INFINITY, (values.kind(), values.device()));
    start.internal_scatter_reduce(0, &pairs.gt, values, "amin", true).index_select(0, &pairs.gt)
}

/// Localisation as a probability: `exp(-beta (1 - GIoU))`. GIoU may exceed 1 by rounding, and libtorch's cross
/// entropy refuses probabilities above 1 (on a GPU by an assertion on the device, which ends the process).
fn localisation(giou_loss: &Tensor, beta: f64) -> Tensor {
    (giou_loss * -beta).exp().clamp_max(1.0)
}

/// Numbers without NaN, and 0 or, where one was NaN or infinite, NaN.
///
/// libtorch's cross entropy refuses NaN (on a GPU by an assertion that kills the process). So it is taken out here and
/// added to the terms, where the trainer reports it.
fn without_nan(t: &Tensor) -> (Tensor, Tensor) {
    (t.nan_to_num(0.5, None, None), (t.detach() * 0.0).sum(None))
}

fn count(x: &Inputs) -> Tensor {
    Tensor::from(x.pairs.labels.numel() as f64).to_kind(x.cls.kind()).to_device(x.cls.device())
}

/// Sums and normalisers of the positive classification, localisation and negative classification loss. The positive
/// ones are sums of positive weights times numbers above 0.
fn terms([cls_pos, loc, cls_neg]: [(Tensor, Tensor); 3]) -> Vec<Term> {
    let term = |name, (sum, value), needs_positives| Term {
        name,
        sum,
        by: Normaliser::at_least_one(value),
        needs_positives,
    };
    vec![
        term("loss_cls_pos", cls_pos, true),
        term("loss_loc", loc, true),
        term("loss_cls_neg", cls_neg, false),
    ]
}

fn released(
    c: &DwConfig,
    x: &Inputs,
    q: &Tensor,
    g: &Geometry,
    probe: &mut dyn Probe,
) -> Vec<Term> {
    let pairs = x.pairs;
    let flat = pairs.cell_flat.index_select(0, &pairs.cell);
    let p_cls = q.reshape([-1]).index_select(0, &flat);
    let p_loc = localisation(&g.giou_loss, c.beta);

    let w_pos = tch::no_grad(|| {
        let labels = pairs.labels.index_select(0, &pairs.gt);
        let d = (offset(pairs) - columns(&x.prior.mean, &labels)).square();
        let along = (d / (columns(&x.prior.sigma, &labels).square() * -2.0)).exp();
        let prior = along.get(0) * along.get(1);
        let prior =
            if c.prior == Prior::Soft { prior } else { prior.gt(c.prior_value).to_kind(q.kind()) };
        let p = &p_cls * &p_loc;
        // The exponents differ on purpose: 5 above, 3 below.
        let (with_prior, above, below) = (&p * prior, (&p * c.mu).exp(), (&p * (c.mu * 0.6)).exp());
        let (above, below) = (above * &with_prior, below * with_prior);
        above / sum_per_box(&below, pairs).clamp_min(TINY)
    });
    let p_neg = tch::no_grad(|| {
        // 1 at IoU 0.5, 0 at IoU 1, stretched to the box's own points.
        let f = (-g.iou.pow_tensor_scalar(c.gamma1) + 1.0) / (1.0 - SURELY_NEGATIVE.powf(c.gamma1));
        let low = min_per_box(&f, pairs);
        let high = (-min_per_box(&-&f, pairs)).clamp_max(1.0);
        let ramp = (f - &low + TINY) / (high - low + TINY);
        let p = ramp.masked_fill(&g.iou.lt(SURELY_NEGATIVE), 1.0);
        // Several boxes of one class on a point: the last one's holds.
        p.index_select(0, &pairs.cell_last)
    });
    let p_neg_all = Tensor::ones(q.numel() as i64, (q.kind(), q.device()))
        .index_copy_(0, &pairs.cell_flat, &p_neg)
        .view_as(q);

    let boxes = count(x);
    let cls_pos = (&w_pos * bce(&p_cls, 1.0)).sum(None) * POSITIVE_SCALE;
    let loc = (&w_pos * bce(&p_loc, 1.0)).sum(None) * POSITIVE_SCALE;
    let cls_neg = (p_neg_all * q.pow_tensor_scalar(c.gamma2) * bce(q, 0.0)).sum(None);
    probe.see("positive", &w_pos);
    probe.see("negative", &p_neg);
    terms([(cls_pos, boxes.shallow_clone()), (loc, boxes), (cls_neg, (-&p_neg + 1.0).sum(None))])
}

fn paper(c: &DwConfig, x: &Inputs, q: &Tensor, g: &Geometry, probe: &mut dyn Probe) -> Vec<Term> {
    let pairs = x.pairs;
    let q_cell = q.reshape([-1]).index_select(0, &pairs.cell_flat);
    let s = q_cell.index_select(0, &pairs.cell);

    let w_pos = tch::no_grad(|| {
        // Eq. 3 and 4, the prior e^(-r^2), normalised over the bag.
        let t = &s * g.iou.pow_tensor_scalar(c.beta);
        let w = (&t * c.mu).exp() * &t;
        let w = if c.prior == Prior::Soft {
            w * (-offset(pairs).square().sum_dim_intlist(0, false, None)).exp()
        } else {
            w
        };
        &w / sum_per_box(&w, pairs).clamp_min(TINY)
    });
    let w_neg = tch::no_grad(|| {
        // Eq. 5 and 6: 1 below IoU 0.5, 0 above 0.95, falling between.
        let (low, high) = (SURELY_NEGATIVE.powf(c.gamma1), SURELY_POSITIVE.powf(c.gamma1));
        let ramp = (-g.iou.pow_tensor_scalar(c.gamma1) + high) / (high - low);
        let p = ramp.where_self(&g.iou.ge(SURELY_NEGATIVE), &Tensor::ones_like(&g.iou));
        let p = p.where_self(&g.iou.le(SURELY_POSITIVE), &Tensor::zeros_like(&g.iou));
        // Eq. 7.
        let i = s.pow_tensor_scalar(c.gamma2);
        let w = match c.w_neg {
            NegWeight::Full => p * i,
            NegWeight::POnly => p,
            NegWeight::IOnly => i,
            NegWeight::None => Tensor::zeros_like(&p),
            NegWeight::OneMinusPos => -&w_pos + 1.0,
        };
        // Several boxes of one class on a point: counted once, with the smallest weight.
        let start = Tensor::full(pairs.cell_flat.size(), f64::INFINITY, (w.kind(), w.device()));
        start.internal_scatter_reduce(0, &pairs.cell, &w, "amin", true)
    });
    let outside = Tensor::full(q.numel() as i64, 1.0 - FOCAL_ALPHA, (q.kind(), q.device()))
        .index_fill_(0, &pairs.cell_flat, 0.0)
        .view_as(q);

    let boxes = count(x);
    let cls_pos = (&w_pos * bce(&s, 1.0)).sum(None);
    let loc = (&w_pos * &g.giou_loss).sum(None) * c.beta;
    let focal = (outside * q.pow_tensor_scalar(FOCAL_GAMMA) * bce(q, 0.0)).sum(None);
    let cls_neg = (&w_neg * bce(&q_cell, 0.0)).sum(None) + focal;
    probe.see("positive", &w_pos);
    probe.see("negative", &w_neg);
    terms([(cls_pos, boxes.shallow_clone()), (loc, boxes.shallow_clone()), (cls_neg, boxes)])
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::geometry::level_sizes;

    #[test]
    fn a_giou_just_above_1_is_no_error() {
        let giou_loss = Tensor::from_slice(&[-1e-7f32, 0.0, 0.5]).set_requires_grad(true);
        let p = localisation(&giou_loss, 5.0);
        // Without the clamp libtorch refuses the first: "all elements of input should be between 0 and 1".
        let loss = bce(&p, 1.0).sum(Kind::Float);
        loss.backward();
        assert_eq!(loss.double_value(&[]), 2.5);
        assert_eq!(
            Vec::<f32>::try_from(giou_loss.grad()).unwrap(),
            [0.0, 0.0, 5.0],
            "nothing to gain at the top"
        );
    }

    /// A prediction that is not a number, or as good as infinite, never ends the process; NaN and infinity come out.
    #[test]
    fn bad_numbers_come_out_in_the_sums() {
        let (grid, options) = (Grid::centers(&level_sizes(64, 64)), (Kind::Float, Device::Cpu));
        let points = grid.num_points();
        let images = [ImageBoxes {
            boxes: vec![[5.0, 5.0, 50.0, 60.0], [1.0, 2.0, 30.0, 30.0]],
            labels: vec![1, 1],
        }];
        for formula in [Formula::Released, Formula::Paper] {
            let config = DwConfig { formula, ..DwConfig::default() };
            let targets = Targets::Pairs(config.pairs(&grid, 3, &images).tensors());
            let prior = CenterPrior {
                mean: Tensor::zeros([3, 2], options),
                sigma: Tensor::ones([3, 2], options),
            };
            let criterion = DualWeighting { config, prior };
            for (value, told) in [
                (f64::NAN, true),
                (f64::INFINITY, true),
                (1e25, false),
                (1e38, false),
                (1.0, false),
            ] {
                for which in 0..3 {
                    let tensor = |n: usize, shape: &[i64]| {
                        let t = Tensor::full(shape, 1.0, options);
                        let _ = t.view([-1]).narrow(0, 9, 1).fill_(if n == which {
                            value
                        } else {
                            1.0
                        });
                        t.set_requires_grad(true)
                    };
                    let (cls, distances, quality) = (
                        tensor(0, &[1, points, 3]),
                        tensor(1, &[1, points, 4]),
                        tensor(2, &[1, points]),
                    );
                    let predicted = Predictions { cls, distances, quality, grid: grid.clone() };
                    let terms =
                        criterion.terms(&predicted, &targets, &Progress::default(), &mut ());
                    let sum: f64 = terms.iter().map(|t| t.sum.double_value(&[])).sum();
                    // An infinite logit is a probability of 1.
                    let expected = if told && (value.is_nan() || which == 1) {
                        sum.is_nan()
                    } else {
                        sum.is_finite()
                    };
                    assert!(expected, "{formula:?}: {value} in input {which} gives {sum}");
                    terms.iter().map(|t| &t.sum).fold(Tensor::from(0f32), |a, b| a + b).backward();
                }
            }
        }
    }
}
