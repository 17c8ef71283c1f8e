//! `[model]`: architecture and initial weights of the network.

use serde::{Deserialize, Serialize};

use super::layers::NormKind;

/// `model.backbone`: kind and depth of the backbone.
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
    /// 3-4-23-3 bottlenecks, 3x3 convolutions in 32 groups.
    #[serde(rename = "resnext101_32x4d")]
    Resnext101x32x4d,
    /// 3-4-23-3 bottlenecks, 3x3 convolutions in 64 groups.
    #[serde(rename = "resnext101_64x4d")]
    Resnext101x64x4d,
}

/// Channels of a group of a ResNeXt's 3x3 convolutions in the first stage (the `4d` of the names).
const GROUP_WIDTH: i64 = 4;

impl Backbone {
    /// Number of blocks in each of the four stages.
    pub fn blocks(self) -> [usize; 4] {
        match self {
            Self::Resnet18 => [2, 2, 2, 2],
            Self::Resnet34 | Self::Resnet50 => [3, 4, 6, 3],
            Self::Resnet101 | Self::Resnext101x32x4d | Self::Resnext101x64x4d => [3, 4, 23, 3],
        }
    }

    /// Whether the blocks are bottlenecks (1x1, 3x3 and 1x1 convolution), which deformable
    /// convolutions require. The others are basic blocks (two 3x3 convolutions).
    pub fn bottleneck(self) -> bool {
        !matches!(self, Self::Resnet18 | Self::Resnet34)
    }

    /// Number of groups of the bottlenecks' 3x3 convolutions.
    pub fn groups(self) -> i64 {
        match self {
            Self::Resnext101x32x4d => 32,
            Self::Resnext101x64x4d => 64,
            _ => 1,
        }
    }

    /// Channels of the 3x3 convolution of a bottleneck in a stage of `planes` channels.
    pub fn inner(self, planes: i64) -> i64 {
        match self.groups() {
            1 => planes,
            groups => (planes * GROUP_WIDTH / 64).max(1) * groups,
        }
    }

    /// Name in the configuration and in the list of pinned ImageNet weights.
    pub fn name(self) -> &'static str {
        match self {
            Self::Resnet18 => "resnet18",
            Self::Resnet34 => "resnet34",
            Self::Resnet50 => "resnet50",
            Self::Resnet101 => "resnet101",
            Self::Resnext101x32x4d => "resnext101_32x4d",
            Self::Resnext101x64x4d => "resnext101_64x4d",
        }
    }
}

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
    /// Input of the pyramid's extra level P6.
    #[serde(default)]
    pub fpn_extra: FpnExtra,
    /// Whether P7 is a convolution of relu(P6) (FCOS, VarifocalNet, AutoAssign, DW) or of P6
    /// (mmdetection's ATSS, PAA, GFL, TOOD, RetinaNet).
    #[serde(default = "on")]
    pub fpn_relu: bool,
    /// The head. The keys that shape towers and branches (`dcn_last_conv`, `refine`, `distances`,
    /// `quality_tower`, `initial_quality`, `head_norm`, `tower_bias`) apply to `fcos` only.
    #[serde(default)]
    pub head: HeadKind,
    /// Whether the last convolution of both towers of the head is deformable.
    #[serde(default)]
    pub dcn_last_conv: bool,
    /// Whether the head has DW's box refinement.
    pub refine: bool,
    /// Conversion of the regression branch's output to distances.
    #[serde(default)]
    pub distances: Distances,
    /// Tower from which the quality is predicted, if any.
    #[serde(default)]
    pub quality_tower: Tower,
    /// Initial probability of the quality branch. Low where the branch is trained on all points
    /// (SimOTA), of which few are positive.
    #[serde(default = "half")]
    pub initial_quality: f64,
    /// Norm layers of the towers.
    #[serde(default)]
    pub head_norm: HeadNorm,
    /// Whether the convolutions of the towers have a bias.
    #[serde(default = "on")]
    pub tower_bias: bool,
    /// Initial weights: `imagenet`, `random`, a weight file, or a checkpoint folder.
    pub init: String,
}

fn on() -> bool {
    true
}

fn half() -> f64 {
    0.5
}

/// `model.fpn_extra`: the feature map that P6 is a convolution of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FpnExtra {
    /// P5.
    #[default]
    OnOutput,
    /// C5 (RetinaNet, FoveaBox, FreeAnchor).
    OnInput,
}

/// `model.head_norm`: norm layers of the towers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadNorm {
    /// Group norm.
    #[default]
    Gn,
    /// None: every convolution has a bias (RetinaNet, FoveaBox, FreeAnchor).
    None,
}

/// `model.head`: the head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadKind {
    /// Two towers, with branches that the other keys select (FCOS, ATSS, GFL, GFLv2, DW).
    #[default]
    Fcos,
    /// The task-aligned head (TOOD).
    Tood,
    /// The head with star-shaped features and box refinement (VarifocalNet).
    Vfnet,
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
    /// Distances to the sides of a box, where x are its deltas (dx, dy, dw, dh) from a square
    /// anchor of side 8 strides around the point (ATSS). The box need not contain the point.
    Deltas,
    /// The means of distributions over 0, 1, .., 16 strides, whose logits are x (GFL).
    Distribution,
}

/// `model.quality_tower`: the tower from which the quality is predicted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tower {
    /// The regression tower.
    #[default]
    Reg,
    /// The classification tower.
    Cls,
    /// No quality branch.
    None,
    /// Neither: the quality is predicted from the shape of the distributions of the distances, and
    /// the class scores are multiplied by it (GFLv2).
    Distribution,
}

impl ModelConfig {
    /// Checks that the keys that only the head of FCOS uses are not set for another head.
    ///
    /// # Errors
    /// Such a key is set. The text names it, the expected value and the value found.
    pub(crate) fn check_head(&self) -> Result<(), String> {
        if self.head == HeadKind::Fcos {
            return Ok(());
        }
        let Self { refine, distances, quality_tower, .. } = self;
        let Self { tower_bias, head_norm, dcn_last_conv, initial_quality, .. } = self;
        let name = format!("{:?}", self.head).to_lowercase();
        let keys: [(&str, bool, &str, &dyn std::fmt::Debug); 7] = [
            ("refine", !refine, "false", refine),
            ("quality_tower", *quality_tower == Tower::None, "none", quality_tower),
            ("initial_quality", *initial_quality == half(), "the default, 0.5,", initial_quality),
            ("distances", *distances == Distances::Relu, "the default, relu,", distances),
            ("tower_bias", *tower_bias, "the default, true,", tower_bias),
            ("head_norm", *head_norm == HeadNorm::Gn, "gn", head_norm),
            ("dcn_last_conv", !dcn_last_conv, "false", dcn_last_conv),
        ];
        let Some((key, _, expected, found)) = keys.into_iter().find(|k| !k.1) else {
            return Ok(());
        };
        let found = format!("{found:?}").to_lowercase();
        Err(format!(
            "`model.{key}`: expected {expected} with `model.head` = \"{name}\", found {found}"
        ))
    }

    /// A warning that lists the settings in which the head differs from that of `system`, which has
    /// no box refinement; `None` if there are none.
    pub(crate) fn unlike(
        &self,
        system: &str,
        distances: Distances,
        tower: Tower,
        bias: bool,
    ) -> Option<String> {
        let mut list = vec![];
        if self.refine {
            list.push("model.refine = true".to_owned());
        }
        if self.distances != distances {
            list.push(format!("model.distances other than {distances:?}").to_lowercase());
        }
        if self.quality_tower != tower {
            list.push(format!("model.quality_tower other than {tower:?}").to_lowercase());
        }
        if self.tower_bias != bias {
            list.push(format!("model.tower_bias = {}", self.tower_bias));
        }
        if self.head_norm != HeadNorm::Gn {
            list.push("model.head_norm = none".to_owned());
        }
        let list = list.join(", ");
        (!list.is_empty()).then(|| format!("the head differs from that of {system} in {list}"))
    }
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
            fpn_extra: FpnExtra::OnOutput,
            fpn_relu: true,
            head: HeadKind::Fcos,
            dcn_last_conv: false,
            refine: true,
            distances: Distances::Relu,
            quality_tower: Tower::Reg,
            head_norm: HeadNorm::Gn,
            initial_quality: half(),
            tower_bias: true,
            init: "imagenet".into(),
        }
    }
}
