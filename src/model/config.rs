//! `[model]`: architecture and initial weights of the network.

use serde::{Deserialize, Serialize};

use super::backbone::resnet::Backbone;
use super::layers::NormKind;

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
