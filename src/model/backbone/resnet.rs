//! ResNet-18/34/50/101 (He et al., CVPR 2016) and ResNeXt-101 (Xie et al., CVPR 2017), optionally
//! with deformable 3x3 convolutions in some stages.
//!
//! Layout and names are mmdetection's with `style="pytorch"`: a bottleneck's stride is on its 3x3
//! convolution.

use tch::Tensor;

use super::deform::{AnyConv, DeformConv};
use crate::model::config::{Backbone, ModelConfig};
use crate::model::layers::{Conv, ConvSpec, Norm, NormKind, Size, Then};
use crate::model::params::{Init, Params};

/// Channels after applying the width multiplier, rounded to a multiple of 8, at least 8.
fn scaled(channels: i64, width: f64) -> i64 {
    ((channels as f64 * width / 8.0).round() as i64).max(1) * 8
}

/// A convolution without bias.
fn conv_spec(input: i64, output: i64, kernel: i64, stride: i64, groups: i64) -> ConvSpec {
    let init = Init::KaimingFanOut;
    ConvSpec { input, output, kernel, stride, groups, init, bias: None }
}

/// Prefix of the names of norm layers in mmdetection.
pub(crate) fn norm_prefix(norm: NormKind) -> &'static str {
    if norm == NormKind::Gn { "gn" } else { "bn" }
}

/// Settings of a residual block.
struct BlockSpec {
    backbone: Backbone,
    norm: NormKind,
    /// Input channels.
    input: i64,
    /// Channels of the stage: those of the convolutions of a basic block.
    planes: i64,
    /// Output channels.
    output: i64,
    stride: i64,
    /// Whether the 3x3 convolutions are deformable.
    deformable: bool,
    trainable: bool,
}

impl BlockSpec {
    /// The convolutions of the residual branch.
    fn convs(&self) -> Vec<ConvSpec> {
        let Self { backbone, input, planes, output, stride, .. } = *self;
        if backbone.bottleneck() {
            let inner = backbone.inner(planes);
            vec![
                conv_spec(input, inner, 1, 1, 1),
                conv_spec(inner, inner, 3, stride, backbone.groups()),
                conv_spec(inner, output, 1, 1, 1),
            ]
        } else {
            vec![conv_spec(input, planes, 3, stride, 1), conv_spec(planes, planes, 3, 1, 1)]
        }
    }
}

/// A residual block: `relu(branch(x) + shortcut(x))`.
#[derive(Debug)]
struct Block {
    convs: Vec<(AnyConv, Norm)>,
    /// 1x1 convolution of the shortcut; `None` for the identity.
    shortcut: Option<(Conv, Norm)>,
}

impl Block {
    /// Builds the block `name`.
    fn new(p: &mut Params, name: &str, spec: &BlockSpec) -> Self {
        let &BlockSpec { norm, input, output, stride, deformable, trainable, .. } = spec;
        let kind = norm_prefix(norm);
        let specs = spec.convs();
        let mut convs = vec![];
        for (n, &conv) in specs.iter().enumerate() {
            // The last norm of a residual branch starts at 0, so that the block starts as its
            // shortcut.
            let scale = if n + 1 == specs.len() { 0.0 } else { 1.0 };
            let conv_name = format!("{name}.conv{}", n + 1);
            let c = if deformable && conv.kernel == 3 {
                let offsets = Init::Const(0.0);
                AnyConv::Deform(DeformConv::new(p, &conv_name, conv, offsets, trainable))
            } else {
                AnyConv::Plain(Conv::new(p, &conv_name, conv, trainable))
            };
            let norm_name = format!("{name}.{kind}{}", n + 1);
            convs.push((c, Norm::new(p, &norm_name, conv.output, norm, scale, trainable)));
        }
        let shortcut = (stride != 1 || input != output).then(|| {
            let conv = conv_spec(input, output, 1, stride, 1);
            let c = Conv::new(p, &format!("{name}.downsample.0"), conv, trainable);
            (c, Norm::new(p, &format!("{name}.downsample.1"), output, norm, 1.0, trainable))
        });
        Self { convs, shortcut }
    }

    /// `[B, Cin, H, W]` to `[B, Cout, H', W']`.
    fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let skip = self.shortcut.as_ref().map_or_else(
            || x.shallow_clone(),
            |(conv, norm)| conv.normalised(x, norm, Then::default(), train),
        );
        let mut y = x.shallow_clone();
        for (i, (conv, norm)) in self.convs.iter().enumerate() {
            let residual = (i + 1 == self.convs.len()).then_some(&skip);
            y = conv.normalised(&y, norm, Then { residual, relu: true }, train);
        }
        y
    }

    /// Multiply-adds for an input of size `input`, and the output's size.
    fn cost(&self, input: Size) -> (u64, Size) {
        let (mut macs, mut size) =
            (self.shortcut.as_ref().map_or(0, |(conv, _)| conv.cost(input).0), input);
        for (conv, _) in &self.convs {
            let (m, s) = conv.cost(size);
            (macs, size) = (macs + m, s);
        }
        (macs, size)
    }
}

/// The backbone.
#[derive(Debug)]
pub struct ResNet {
    stem: (Conv, Norm),
    stages: Vec<Vec<Block>>,
    /// Channels of the feature maps C2 to C5.
    pub channels: [i64; 4],
}

impl ResNet {
    /// Builds the backbone; the names of its tensors start with `backbone.`.
    pub fn new(p: &mut Params, config: &ModelConfig) -> Self {
        let ModelConfig { backbone, width, norm, frozen_stages, .. } = *config;
        let base = scaled(64, width);
        let train_stem = frozen_stages < 0;
        let stem_norm = format!("backbone.{}1", norm_prefix(norm));
        let stem = (
            Conv::new(p, "backbone.conv1", conv_spec(3, base, 7, 2, 1), train_stem),
            Norm::new(p, &stem_norm, base, norm, 1.0, train_stem),
        );
        let mut input = base;
        let mut stages = vec![];
        let mut channels = [0; 4];
        for (stage, &num_blocks) in backbone.blocks().iter().enumerate() {
            let planes = scaled(64 << stage, width);
            let output = if backbone.bottleneck() { planes * 4 } else { planes };
            let mut blocks = vec![];
            for i in 0..num_blocks {
                let spec = BlockSpec {
                    backbone,
                    norm,
                    input,
                    planes,
                    output,
                    stride: if i == 0 && stage > 0 { 2 } else { 1 },
                    // `dcn_stages` counts feature maps: the first stage gives C2.
                    deformable: config.dcn_stages.contains(&(stage as i64 + 2)),
                    trainable: (stage as i64) >= frozen_stages,
                };
                let name = format!("backbone.layer{}.{i}", stage + 1);
                blocks.push(Block::new(p, &name, &spec));
                input = output;
            }
            channels[stage] = output;
            stages.push(blocks);
        }
        Self { stem, stages, channels }
    }

    /// Normalised images `[B, 3, H, W]` to the feature maps C2, C3, C4, C5 at strides 4, 8, 16, 32.
    pub fn forward(&self, x: &Tensor, train: bool) -> Vec<Tensor> {
        let (conv, norm) = &self.stem;
        let mut y = conv.normalised(x, norm, Then::RELU, train);
        y = y.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false);
        let mut out = vec![];
        for stage in &self.stages {
            for block in stage {
                y = block.forward(&y, train);
            }
            out.push(y.shallow_clone());
        }
        out
    }

    /// Multiply-adds for one image of `size`, and the sizes of C2, C3, C4, C5.
    pub fn cost(&self, size: Size) -> (u64, Vec<Size>) {
        let (mut macs, stem) = self.stem.0.cost(size);
        let pooled = |n: i64| (n + 2 - 3) / 2 + 1;
        let mut size = (pooled(stem.0), pooled(stem.1));
        let mut out = vec![];
        for stage in &self.stages {
            for block in stage {
                let (m, s) = block.cost(size);
                (macs, size) = (macs + m, s);
            }
            out.push(size);
        }
        (macs, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    /// Published multiply-adds of the classifiers at 224 x 224, whose last layer adds 2048 x 1000.
    #[test]
    fn cost_equals_the_published_one() {
        for (backbone, giga) in [
            (Backbone::Resnet50, 4.09),
            (Backbone::Resnet101, 7.80),
            (Backbone::Resnext101x64x4d, 15.46),
        ] {
            let mut p = Params::new(Kind::Float, Device::Cpu);
            let net = ResNet::new(&mut p, &ModelConfig { backbone, ..ModelConfig::default() });
            let (macs, sizes) = net.cost((224, 224));
            assert_eq!(sizes, [(56, 56), (28, 28), (14, 14), (7, 7)]);
            let found = (macs as f64 + 2048e3) / 1e9;
            assert!(
                (found - giga).abs() < 0.03,
                "{backbone:?}: {found} giga multiply-adds, published {giga}"
            );
        }
    }

    /// Parameters of torchvision's and timm's classifiers, whose last layer adds 2049 x 1000.
    #[test]
    fn number_of_parameters_equals_the_published_one() {
        for (backbone, count) in [
            (Backbone::Resnet50, 25_557_032),
            (Backbone::Resnet101, 44_549_160),
            (Backbone::Resnext101x32x4d, 44_177_704),
            (Backbone::Resnext101x64x4d, 83_455_272),
        ] {
            let mut p = Params::new(Kind::Float, Device::Cpu);
            ResNet::new(&mut p, &ModelConfig { backbone, ..ModelConfig::default() });
            assert_eq!(p.counts().1 + 2_049_000, count, "{backbone:?}");
        }
    }
}
