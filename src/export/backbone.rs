//! Backbone and feature pyramid as ONNX operators.

use super::graph::{Graph, ints, text};
use super::layers::{Layer, NormOf, Source};
use crate::Result;
use crate::model::backbone::resnet::norm_prefix;
use crate::model::{FpnExtra, ModelConfig, NormKind};

/// Normalised images to the pyramid P3..P7.
///
/// # Errors
/// See [`Source::read`].
pub fn pyramid(
    g: &mut Graph,
    source: &Source,
    config: &ModelConfig,
    images: &str,
) -> Result<Vec<String>> {
    let c = backbone(g, source, config, images)?;
    fpn(g, source, config, &c[1..])
}

/// A convolution of the backbone and the norm layer `norm`.
fn layer(
    g: &mut Graph,
    source: &Source,
    config: &ModelConfig,
    (conv, norm): (&str, &str),
    shape: (i64, i64),
) -> Result<Layer> {
    let norm = match config.norm {
        NormKind::FrozenBn | NormKind::Bn => NormOf::Batch(norm),
        NormKind::Gn => NormOf::Group(norm),
    };
    Layer::new(g, source, conv, norm, shape)
}

/// The feature maps C2 to C5.
fn backbone(
    g: &mut Graph,
    source: &Source,
    config: &ModelConfig,
    images: &str,
) -> Result<Vec<String>> {
    let prefix = norm_prefix(config.norm);
    let names = ("backbone.conv1", &*format!("backbone.{prefix}1"));
    let mut y = layer(g, source, config, names, (2, 1))?.relu(g, images);
    let window = [ints("kernel_shape", &[3; 2]), ints("strides", &[2; 2]), ints("pads", &[1; 4])];
    y = g.with("MaxPool", &[&y], window.into());
    let mut out = vec![];
    for (stage, &num_blocks) in config.backbone.blocks().iter().enumerate() {
        for i in 0..num_blocks {
            let name = format!("backbone.layer{}.{i}", stage + 1);
            let stride = if i == 0 && stage > 0 { 2 } else { 1 };
            y = block(g, source, config, &name, &y, stride)?;
        }
        out.push(y.clone());
    }
    Ok(out)
}

/// A residual block. A bottleneck's stride is on its 3x3 convolution.
fn block(
    g: &mut Graph,
    source: &Source,
    config: &ModelConfig,
    name: &str,
    x: &str,
    stride: i64,
) -> Result<String> {
    let prefix = norm_prefix(config.norm);
    let groups = config.backbone.groups();
    let shapes = if config.backbone.bottleneck() {
        vec![(1, 1), (stride, groups), (1, 1)]
    } else {
        vec![(stride, 1), (1, 1)]
    };
    let downsample = format!("{name}.downsample.0");
    let skip = if source.has(&format!("{downsample}.weight")) {
        let names = (&*downsample, &*format!("{name}.downsample.1"));
        layer(g, source, config, names, (stride, 1))?.apply(g, x)
    } else {
        x.to_owned()
    };
    let mut y = x.to_owned();
    for (i, shape) in shapes.iter().enumerate() {
        let n = i + 1;
        let names = (&*format!("{name}.conv{n}"), &*format!("{name}.{prefix}{n}"));
        y = layer(g, source, config, names, *shape)?.apply(g, &y);
        if n == shapes.len() {
            y = g.op("Add", &[&y, &skip]);
        }
        y = g.op("Relu", &[&y]);
    }
    Ok(y)
}

/// `[C3, C4, C5]` to `[P3, .., P7]`.
fn fpn(g: &mut Graph, source: &Source, config: &ModelConfig, c: &[String]) -> Result<Vec<String>> {
    let mut lateral = vec![];
    for (i, x) in c.iter().enumerate() {
        let conv = Layer::plain(g, source, &format!("neck.lateral_convs.{i}.conv"))?;
        lateral.push(conv.apply(g, x));
    }
    // Sizes are multiples of 32, so each map has exactly half the size of the one below it.
    let scales = g.floats(&[1.0, 1.0, 2.0, 2.0], &[4]);
    for i in (1..lateral.len()).rev() {
        let how = [
            text("mode", "nearest"),
            text("coordinate_transformation_mode", "asymmetric"),
            text("nearest_mode", "floor"),
        ];
        let up = g.with("Resize", &[&lateral[i], "", &scales], how.into());
        lateral[i - 1] = g.op("Add", &[&lateral[i - 1], &up]);
    }
    let mut p = vec![];
    for (i, x) in lateral.iter().enumerate() {
        p.push(Layer::plain(g, source, &format!("neck.fpn_convs.{i}.conv"))?.apply(g, x));
    }
    for i in [3, 4] {
        let name = format!("neck.fpn_convs.{i}.conv");
        let conv = Layer::new(g, source, &name, NormOf::None, (2, 1))?;
        let input = match (i, config.fpn_extra) {
            (3, FpnExtra::OnInput) => c[2].clone(),
            (4, _) if config.fpn_relu => g.op("Relu", &[&p[3]]),
            _ => p[i - 1].clone(),
        };
        p.push(conv.apply(g, &input));
    }
    Ok(p)
}
