//! The detector: ResNet, FPN and FCOS head.

pub mod backbone;
pub mod fpn;
pub mod heads;
pub mod layers;
pub mod params;
pub mod weights;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

pub use heads::fcos::{Outputs, Predictions, Rank};
pub use layers::NormKind;
pub use params::Params;
pub use backbone::resnet::Backbone;

/// `[model]`: what decides the network's shape, and how it starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Kind and depth of the backbone.
    pub backbone: Backbone,
    /// Multiplier of the backbone's channels.
    pub width: f64,
    /// Channels of neck and head.
    pub channels: i64,
    /// Norm layers of the backbone.
    pub norm: NormKind,
    /// Frozen stages (-1: none, 0: the stem, 1: and stage 1); nothing is frozen when training from random weights.
    pub frozen_stages: i64,
    /// Stages with deformable 3x3 convolutions (DCNv2), by the feature map they make: 2 to 5.
    #[serde(default)]
    pub dcn_stages: Vec<i64>,
    /// Deformable last convolution in both towers of the head.
    #[serde(default)]
    pub dcn_last_conv: bool,
    /// Box refinement.
    pub refine: bool,
    /// How the head's numbers become distances.
    #[serde(default)]
    pub distances: Distances,
    /// The tower that quality is predicted from.
    #[serde(default)]
    pub quality_tower: Tower,
    /// The convolutions of the towers have a bias.
    #[serde(default = "with_bias")]
    pub tower_bias: bool,
    /// Start: `imagenet`, `random`, or a weight file or checkpoint folder.
    pub init: String,
}

fn with_bias() -> bool {
    true
}

/// How the regression branch's numbers become distances.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Distances {
    /// `max(0, x)` in units of the level's stride (DW, FCOS's improved head).
    #[default]
    Relu,
    /// `exp(x)` in pixels (FCOS's plain head).
    Exp,
}

/// One of the head's two towers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tower {
    /// That of the boxes.
    #[default]
    Reg,
    /// That of the classes.
    Cls,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            backbone: Backbone::Resnet50,
            width: 1.0,
            channels: 256,
            norm: NormKind::FrozenBn,
            frozen_stages: 1,
            dcn_stages: vec![],
            dcn_last_conv: false,
            refine: true,
            distances: Distances::Relu,
            quality_tower: Tower::Reg,
            tower_bias: true,
            init: "imagenet".into(),
        }
    }
}

/// A network with its parameters.
#[derive(Debug)]
pub struct Detector {
    /// Named tensors that the layers share.
    pub params: Params,
    backbone: backbone::resnet::ResNet,
    neck: fpn::Fpn,
    head: heads::fcos::Head,
    /// How its predictions become detections; the strategy that it is trained with decides.
    pub rank: Rank,
    /// Where its points lie in their cells, see [`crate::geometry::Grid`]; the strategy decides.
    pub offset: f64,
}

impl Detector {
    /// Builds a network for `classes` classes with random weights (seeded by `tch::manual_seed`).
    pub fn new(config: &ModelConfig, classes: usize, kind: Kind, device: Device) -> Self {
        let mut params = Params::new(kind, device);
        let backbone = backbone::resnet::ResNet::new(&mut params, config);
        let neck = fpn::Fpn::new(&mut params, &backbone.channels[1..], config.channels);
        let head = heads::fcos::Head::new(&mut params, config, classes as i64);
        Self { params, backbone, neck, head, rank: Rank::default(), offset: 0.5 }
    }

    /// Normalised images `[B, 3, H, W]` (H and W multiples of 32) to predictions.
    pub fn forward(&self, images: &Tensor, train: bool) -> Outputs {
        self.head.forward(&self.features(images, train).1, self.offset)
    }

    /// Normalised images `[B, 3, H, W]` to backbone features C2..C5 (strides 4 to 32) and pyramid P3..P7 (8 to 128).
    pub fn features(&self, images: &Tensor, train: bool) -> (Vec<Tensor>, Vec<Tensor>) {
        let c = self.backbone.forward(images, train);
        let p = self.neck.forward(&c[1..]);
        (c, p)
    }

    /// Multiply-adds of the convolutions for one image of `height` x `width` pixels (norms, activations and sampling
    /// are not counted, as is usual).
    pub fn cost(&self, height: i64, width: i64) -> u64 {
        let (backbone, c) = self.backbone.cost((height, width));
        let (neck, p) = self.neck.cost(&c[1..]);
        backbone + neck + self.head.cost(&p)
    }

    /// Predictions from given features P3..P7.
    pub fn head(&self) -> &heads::fcos::Head {
        &self.head
    }
}
