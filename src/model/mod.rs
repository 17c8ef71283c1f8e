//! The detector: ResNet or ResNeXt backbone, FPN, and FCOS head with DW's box refinement.
//!
//! Shapes: B images, H x W input size in pixels, h x w size of a level in cells, P points over all
//! levels, C classes.

pub mod deform;
pub mod fpn;
pub mod head;
pub mod layers;
pub mod params;
pub mod resnet;
pub mod weights;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

pub use head::{Outputs, Predictions, Rank};
pub use layers::NormKind;
pub use params::Params;
pub use resnet::Backbone;

/// `[model]`: architecture and initial weights of the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Kind and depth of the backbone.
    pub backbone: Backbone,
    /// Factor of the backbone's channels.
    pub width: f64,
    /// Channels of FPN and head.
    pub channels: i64,
    /// Kind of the backbone's norm layers.
    pub norm: NormKind,
    /// Frozen stages of the backbone: -1 for none, 0 for the stem, n for the stem and stages 1 to
    /// n. Nothing is frozen when training starts from random weights.
    pub frozen_stages: i64,
    /// Stages with deformable 3x3 convolutions (DCNv2), given as the number of their feature map C2
    /// to C5.
    #[serde(default)]
    pub dcn_stages: Vec<i64>,
    /// Whether the last convolution of both towers of the head is deformable.
    #[serde(default)]
    pub dcn_last_conv: bool,
    /// Whether the head has DW's box refinement.
    pub refine: bool,
    /// Conversion of the regression branch's output to distances.
    #[serde(default)]
    pub distances: Distances,
    /// Tower from which the quality is predicted.
    #[serde(default)]
    pub quality_tower: Tower,
    /// Whether the convolutions of the towers have a bias.
    #[serde(default = "with_bias")]
    pub tower_bias: bool,
    /// Initial weights: `imagenet`, `random`, a weight file, or a checkpoint folder.
    pub init: String,
}

fn with_bias() -> bool {
    true
}

/// `model.distances`: conversion of the regression branch's output x to distances.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Distances {
    /// `max(0, x)` strides (DW, and FCOS's improved head).
    #[default]
    Relu,
    /// `exp(x)` pixels (FCOS's plain head).
    Exp,
}

/// `model.quality_tower`: one of the head's two towers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tower {
    /// The regression tower.
    #[default]
    Reg,
    /// The classification tower.
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

/// The network and its parameters.
#[derive(Debug)]
pub struct Detector {
    /// All named tensors; the layers hold shallow clones.
    pub params: Params,
    backbone: resnet::ResNet,
    neck: fpn::Fpn,
    head: head::Head,
    /// How predictions are ranked in post-processing; set by the assignment strategy.
    pub rank: Rank,
    /// Offset of the points within their cells, see [`crate::boxes::Grid::offset`]; set by the
    /// assignment strategy.
    pub offset: f64,
}

impl Detector {
    /// Builds a network for `classes` classes with random weights, drawn from the generator that
    /// `tch::manual_seed` seeds.
    pub fn new(config: &ModelConfig, classes: usize, kind: Kind, device: Device) -> Self {
        let mut params = Params::new(kind, device);
        let backbone = resnet::ResNet::new(&mut params, config);
        let neck = fpn::Fpn::new(&mut params, &backbone.channels[1..], config.channels);
        let head = head::Head::new(&mut params, config, classes as i64);
        Self { params, backbone, neck, head, rank: Rank::default(), offset: 0.5 }
    }

    /// Normalised images `[B, 3, H, W]`, H and W multiples of 32, to raw predictions. `train`
    /// selects the mode of the norm layers.
    pub fn forward(&self, images: &Tensor, train: bool) -> Outputs {
        self.head.forward(&self.features(images, train).1, self.offset)
    }

    /// Normalised images `[B, 3, H, W]` to the backbone's feature maps C2..C5 (strides 4 to 32) and
    /// the pyramid P3..P7 (strides 8 to 128).
    pub fn features(&self, images: &Tensor, train: bool) -> (Vec<Tensor>, Vec<Tensor>) {
        let c = self.backbone.forward(images, train);
        let p = self.neck.forward(&c[1..]);
        (c, p)
    }

    /// Multiply-adds of the convolutions for one image of `height` x `width` pixels. Norm layers,
    /// activations and sampling are not counted, as is usual.
    pub fn cost(&self, height: i64, width: i64) -> u64 {
        let (backbone, c) = self.backbone.cost((height, width));
        let (neck, p) = self.neck.cost(&c[1..]);
        backbone + neck + self.head.cost(&p)
    }

    /// The head, to compute predictions from given features P3..P7.
    pub fn head(&self) -> &head::Head {
        &self.head
    }
}
