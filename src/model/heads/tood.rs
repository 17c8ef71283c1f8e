//! The task-aligned head of TOOD (Feng et al., ICCV 2021, Sec. 3.1): both tasks read the features
//! of all layers of one tower, each with its own weights for the layers. Scores and boxes are then
//! aligned by maps that are predicted from the features of all layers.
//!
//! Shapes: B images, L layers, F channels of a layer, h x w size of a level in cells.

use tch::{Kind, Tensor};

use super::parts::{DEVIATION, conv, normed, scales, score_bias};
use super::sampling::{cells, sample};
use super::{ClassOutput, Outputs};
use crate::geometry::{self, STRIDES};
use crate::model::config::ModelConfig;
use crate::model::layers::{Conv, Norm, Size, Then};
use crate::model::params::Params;

/// Number of layers.
pub(crate) const LAYERS: i64 = 6;
/// The hidden layer that predicts the layers' weights has `channels / SQUEEZE` channels.
const SQUEEZE: i64 = 8;
/// The hidden layers that predict the alignment maps have `channels / NARROW` channels.
const NARROW: i64 = 4;
/// Initial class probability, and initial value of the map that it is multiplied by.
const INITIAL_SCORE: f64 = 0.01;
/// Standard deviation of the initial weights of convolutions that start with little effect.
const SMALL: f64 = 0.001;

/// The task-aligned head.
#[derive(Debug)]
pub struct Head {
    layers: Vec<(Conv, Norm)>,
    cls_task: Decomposition,
    reg_task: Decomposition,
    cls: Conv,
    reg: Conv,
    /// Map that class probabilities are multiplied by.
    cls_map: [Conv; 2],
    /// Offsets (dy, dx) for each of x1, y1, x2, y2, cells.
    reg_map: [Conv; 2],
    /// Factor of the distances on each level, scalars.
    scales: Vec<Tensor>,
}

/// A 1x1 and a 3x3 convolution that predict a map of `output` channels from the features of all
/// layers.
fn map(p: &mut Params, name: &str, width: i64, output: i64, init: (f64, f64)) -> [Conv; 2] {
    let hidden = (width / NARROW).max(1);
    let (deviation, bias) = init;
    [
        conv(p, &format!("{name}.0"), (width * LAYERS, hidden, 1), deviation, Some(0.0)),
        conv(p, &format!("{name}.2"), (hidden, output, 3), deviation, Some(bias)),
    ]
}

/// The output of a map, in `kind`.
fn run_map(map: &[Conv; 2], features: &Tensor, kind: Kind) -> Tensor {
    map[1].forward_as(&Then::RELU.apply(map[0].forward(features)), kind)
}

impl Head {
    /// Builds the head; the names of its tensors start with `bbox_head.`.
    pub fn new(p: &mut Params, config: &ModelConfig, classes: i64) -> Self {
        let width = config.channels;
        let score_bias = score_bias(INITIAL_SCORE);
        let layer = |i| format!("inter_convs.{i}");
        // Struct fields are initialised in the order written: the parameters' order of use.
        Self {
            layers: (0..LAYERS).map(|i| normed(p, &layer(i), (width, width, 3))).collect(),
            cls_task: Decomposition::new(p, "cls_decomp", width),
            reg_task: Decomposition::new(p, "reg_decomp", width),
            cls: conv(p, "tood_cls", (width, classes, 3), DEVIATION, Some(score_bias)),
            reg: conv(p, "tood_reg", (width, 4, 3), DEVIATION, Some(0.0)),
            cls_map: map(p, "cls_prob_module", width, 1, (DEVIATION, score_bias)),
            reg_map: map(p, "reg_offset_module", width, 8, (SMALL, 0.0)),
            scales: scales(p, "scales"),
        }
    }

    /// Features `[P3, .., P7]`, each `[B, channels, h, w]`, to raw predictions: class
    /// probabilities, and distances that can be negative. See [`geometry::Grid::offset`] for
    /// `offset`.
    pub fn forward(&self, pyramid: &[Tensor], offset: f64) -> Outputs {
        let mut out = Outputs::empty(ClassOutput::Probability, offset);
        for (level, x) in pyramid.iter().enumerate() {
            let mut layers = vec![];
            for (conv, norm) in &self.layers {
                let input = layers.last().unwrap_or(x);
                layers.push(conv.normalised(input, norm, Then::RELU, true));
            }
            let all = Tensor::cat(&layers, 1);
            let average = all.mean_dim([2, 3].as_slice(), true, None);
            let kind = self.scales[level].kind();
            let cls = self.cls.forward_as(&self.cls_task.forward(&all, &average), kind);
            let aligned = run_map(&self.cls_map, &all, kind);
            // The square root of the product of both probabilities; its gradient is finite also
            // where one of them is 0 in floating point.
            out.cls.push(((cls.log_sigmoid() + aligned.log_sigmoid()) * 0.5).exp());
            let reg = self.reg.forward_as(&self.reg_task.forward(&all, &average), kind);
            let distances = reg.exp() * &self.scales[level];
            let offsets = run_map(&self.reg_map, &all, kind);
            out.distances.push(self::aligned(&distances, &offsets, STRIDES[level], offset));
        }
        out
    }

    /// Multiply-adds for P3..P7 of sizes `p`.
    pub fn cost(&self, p: &[Size]) -> u64 {
        let convs = self.layers.iter().map(|l| &l.0).chain([&self.cls, &self.reg]);
        let convs = convs.chain(&self.cls_map).chain(&self.reg_map);
        let convs: Vec<&Conv> =
            convs.chain([&self.cls_task.reduction.0, &self.reg_task.reduction.0]).collect();
        p.iter().map(|&size| convs.iter().map(|c| c.cost(size).0).sum::<u64>()).sum()
    }
}

/// One task's features from those of all layers: each layer has a weight, which depends on the
/// image.
#[derive(Debug)]
struct Decomposition {
    attention: [Conv; 2],
    reduction: (Conv, Norm),
    width: i64,
}

impl Decomposition {
    fn new(p: &mut Params, name: &str, width: i64) -> Self {
        let all = width * LAYERS;
        let hidden = (width / SQUEEZE).max(1);
        let attention = |i, shape| (format!("{name}.layer_attention.{i}"), shape);
        let [first, last] = [attention(0, (all, hidden, 1)), attention(2, (hidden, LAYERS, 1))];
        Self {
            attention: [first, last].map(|(name, shape)| conv(p, &name, shape, SMALL, Some(0.0))),
            reduction: normed(p, &format!("{name}.reduction_conv"), (all, width, 1)),
            width,
        }
    }

    /// `all` `[B, L F, h, w]` and its mean over the cells `[B, L F, 1, 1]` to `[B, F, h, w]`.
    fn forward(&self, all: &Tensor, average: &Tensor) -> Tensor {
        let hidden = Then::RELU.apply(self.attention[0].forward(average));
        let weights = self.attention[1].forward(&hidden).sigmoid();
        let size = all.size();
        let (b, h, w) = (size[0], size[2], size[3]);
        // The layers' weights are multiplied into the convolution's, which are fewer than the
        // features.
        let (conv, norm) = &self.reduction;
        let kernel = conv.weight().to_kind(all.kind()).view([1, self.width, LAYERS, self.width]);
        let kernel = (kernel * weights.view([b, 1, LAYERS, 1])).view([b, self.width, -1]);
        let reduced = kernel.bmm(&all.contiguous().view([b, -1, h * w]));
        Then::RELU.apply(norm.forward(&reduced.view([b, self.width, h, w]), true))
    }
}

/// Alignment of the boxes: each coordinate is sampled again from the map of predicted boxes, at its
/// own cell plus an offset. A box whose opposite sides would swap stays as it is.
///
/// `distances` `[B, 4, h, w]` in strides; `offsets` `[B, 8, h, w]` in cells. Returns distances in
/// pixels.
fn aligned(distances: &Tensor, offsets: &Tensor, stride: i64, offset: f64) -> Tensor {
    let size = distances.size();
    let (b, h, w) = (size[0], size[2], size[3]);
    let (kind, device) = (distances.kind(), distances.device());
    let points = geometry::level_points(h, w, stride, offset, kind, device).view([1, h, w, 2]);
    let pixels = (distances * stride as f64).permute([0, 2, 3, 1]);
    let boxes = geometry::decode(&points, &pixels).permute([0, 3, 1, 2]);
    let offsets = offsets.contiguous().view([b, 4, 2, h, w]);
    let (x, y) = cells(h, w, &boxes);
    let sampled = sample(&boxes, offsets.select(2, 1) + x, offsets.select(2, 0) + y);
    let (low, high) = (sampled.narrow(1, 0, 2), sampled.narrow(1, 2, 2));
    let is_crossed = low.gt_tensor(&high).any_dim(1, true);
    let boxes = boxes.where_self(&is_crossed, &sampled).permute([0, 2, 3, 1]);
    geometry::encode(&points, &boxes).permute([0, 3, 1, 2])
}
