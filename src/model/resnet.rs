//! ResNet-18/34/50/101 in mmdetection's layout ("pytorch" style: a bottleneck's stride is on its 3x3 convolution).

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::layers::{Conv, ConvSpec, Norm, NormKind};
use super::params::{Init, Params};

/// Which backbone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backbone {
    /// 2-2-2-2 basic blocks.
    Resnet18,
    /// 3-4-6-3 basic blocks.
    Resnet34,
    /// 3-4-6-3 bottlenecks.
    Resnet50,
    /// 3-4-23-3 bottlenecks.
    Resnet101,
}

impl Backbone {
    fn blocks(self) -> [usize; 4] {
        match self {
            Self::Resnet18 => [2, 2, 2, 2],
            Self::Resnet34 | Self::Resnet50 => [3, 4, 6, 3],
            Self::Resnet101 => [3, 4, 23, 3],
        }
    }

    fn bottleneck(self) -> bool {
        matches!(self, Self::Resnet50 | Self::Resnet101)
    }

    /// File stem of torchvision's ImageNet weights (V1), with the first eight digits of its sha256.
    pub fn imagenet_file(self) -> &'static str {
        match self {
            Self::Resnet18 => "resnet18-f37072fd",
            Self::Resnet34 => "resnet34-b627a593",
            Self::Resnet50 => "resnet50-0676ba61",
            Self::Resnet101 => "resnet101-63fe2227",
        }
    }
}

/// Channels of a width multiplier: at least 8, a multiple of 8.
fn scaled(channels: i64, width: f64) -> i64 {
    ((channels as f64 * width / 8.0).round() as i64).max(1) * 8
}

#[derive(Debug)]
struct Block {
    convs: Vec<(Conv, Norm)>,
    shortcut: Option<(Conv, Norm)>,
}

impl Block {
    fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let mut y = x.shallow_clone();
        for (i, (conv, norm)) in self.convs.iter().enumerate() {
            y = norm.forward(&conv.forward(&y), train);
            if i + 1 < self.convs.len() {
                y = y.relu_();
            }
        }
        let skip = self.shortcut.as_ref().map_or_else(|| x.shallow_clone(), |(conv, norm)| norm.forward(&conv.forward(x), train));
        (y + skip).relu_()
    }
}

/// The backbone.
#[derive(Debug)]
pub struct ResNet {
    stem: (Conv, Norm),
    stages: Vec<Vec<Block>>,
    /// Channels of C2 to C5.
    pub channels: [i64; 4],
}

/// How to build a backbone.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// Depth.
    pub backbone: Backbone,
    /// Multiplier of all channels.
    pub width: f64,
    /// Norm layers.
    pub norm: NormKind,
    /// -1: all is trained; 0: the stem is frozen; n: and the first n stages.
    pub frozen_stages: i64,
}

impl ResNet {
    /// Builds the network below `backbone.`.
    pub fn new(p: &mut Params, spec: Spec) -> Self {
        let Spec { backbone, width, norm, frozen_stages } = spec;
        // mmdetection names group norm layers gn1, ...
        let kind = if norm == NormKind::Gn { "gn" } else { "bn" };
        let conv = |input, output, kernel, stride| ConvSpec { input, output, kernel, stride, init: Init::KaimingFanOut, bias: None };
        let base = scaled(64, width);
        let train_stem = frozen_stages < 0;
        let stem = (
            Conv::new(p, "backbone.conv1", conv(3, base, 7, 2), train_stem),
            Norm::new(p, &format!("backbone.{kind}1"), base, norm, 1.0, train_stem),
        );
        let mut input = base;
        let mut stages = vec![];
        let mut channels = [0; 4];
        for (stage, &blocks) in backbone.blocks().iter().enumerate() {
            let trainable = (stage as i64) >= frozen_stages;
            let planes = scaled(64 << stage, width);
            let output = if backbone.bottleneck() { planes * 4 } else { planes };
            let mut list = vec![];
            for i in 0..blocks {
                let name = format!("backbone.layer{}.{i}", stage + 1);
                let stride = if i == 0 && stage > 0 { 2 } else { 1 };
                let shapes = if backbone.bottleneck() {
                    vec![(input, planes, 1, 1), (planes, planes, 3, stride), (planes, output, 1, 1)]
                } else {
                    vec![(input, planes, 3, stride), (planes, planes, 3, 1)]
                };
                let mut convs = vec![];
                for (n, &(a, b, k, s)) in shapes.iter().enumerate() {
                    // The last norm of a residual branch starts at 0: the block starts as its shortcut.
                    let scale = if n + 1 == shapes.len() { 0.0 } else { 1.0 };
                    let c = Conv::new(p, &format!("{name}.conv{}", n + 1), conv(a, b, k, s), trainable);
                    convs.push((c, Norm::new(p, &format!("{name}.{kind}{}", n + 1), b, norm, scale, trainable)));
                }
                let shortcut = (stride != 1 || input != output).then(|| {
                    let c = Conv::new(p, &format!("{name}.downsample.0"), conv(input, output, 1, stride), trainable);
                    (c, Norm::new(p, &format!("{name}.downsample.1"), output, norm, 1.0, trainable))
                });
                list.push(Block { convs, shortcut });
                input = output;
            }
            channels[stage] = output;
            stages.push(list);
        }
        Self { stem, stages, channels }
    }

    /// `[B, 3, H, W]` to C2, C3, C4, C5 at strides 4, 8, 16, 32.
    pub fn forward(&self, x: &Tensor, train: bool) -> Vec<Tensor> {
        let (conv, norm) = &self.stem;
        let mut y = norm.forward(&conv.forward(x), train).relu_();
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
}
