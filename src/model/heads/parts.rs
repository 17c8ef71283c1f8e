//! Building blocks of several heads. Names of tensors start with `bbox_head.`.

use tch::Tensor;

use crate::geometry::STRIDES;
use crate::model::layers::{Conv, ConvSpec, Norm, NormKind};
use crate::model::params::{Init, Params};

/// Standard deviation of the initial weights of a head's convolutions, unless stated otherwise.
pub const DEVIATION: f64 = 0.01;

/// Bias of class logits for the initial class probability `score`. A low probability keeps the loss
/// of the many negative points small in the first steps.
pub fn score_bias(score: f64) -> f64 {
    -((1.0 - score) / score).ln()
}

/// One trained scalar factor for each level, initially 1.
pub fn scales(p: &mut Params, name: &str) -> Vec<Tensor> {
    let scale =
        |i| p.param(format!("bbox_head.{name}.{i}.scale"), &[], Init::Const(1.0), true, true);
    (0..STRIDES.len()).map(scale).collect()
}

/// Shape of a convolution: input channels, output channels, side of the kernel.
pub type Shape = (i64, i64, i64);

/// A convolution with initial weights N(0, `deviation`^2).
pub fn conv(p: &mut Params, name: &str, shape: Shape, deviation: f64, bias: Option<f64>) -> Conv {
    let (input, output, kernel) = shape;
    let init = Init::Normal(deviation);
    let spec = ConvSpec { input, output, kernel, stride: 1, groups: 1, init, bias };
    Conv::new(p, &format!("bbox_head.{name}"), spec, true)
}

/// A convolution without bias, and group norm.
pub fn normed(p: &mut Params, name: &str, shape: Shape) -> (Conv, Norm) {
    let conv = conv(p, &format!("{name}.conv"), shape, DEVIATION, None);
    let norm = format!("bbox_head.{name}.gn");
    (conv, Norm::new(p, &norm, shape.1, NormKind::Gn, 1.0, true))
}
