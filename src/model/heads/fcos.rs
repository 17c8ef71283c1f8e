//! FCOS head with DW's box refinement: two towers shared by all levels, four predictions.

use tch::{Kind, Tensor};

use crate::model::backbone::deform::{AnyConv, DeformConv};
use crate::model::layers::{Conv, ConvSpec, Norm, NormKind, Size};
use crate::model::params::{Init, Params};
use crate::model::{Distances, ModelConfig, Tower};
use crate::geometry::{self, Grid, STRIDES};

/// Raw predictions for one batch, one tensor a level.
#[derive(Debug)]
pub struct Outputs {
    /// Class logits `[B, C, h, w]`.
    pub cls: Vec<Tensor>,
    /// Distances (l, t, r, b) in pixels `[B, 4, h, w]`, never negative.
    pub distances: Vec<Tensor>,
    /// Quality logits `[B, 1, h, w]`: objectness in DW, where they have no target of their own, centre-ness in FCOS.
    pub quality: Vec<Tensor>,
    /// Place of a point in its cell, see [`Grid`].
    pub offset: f64,
}

/// Raw predictions for one batch, all levels in one tensor.
#[derive(Debug)]
pub struct Predictions {
    /// Class logits `[B, P, C]`.
    pub cls: Tensor,
    /// Distances (l, t, r, b) in pixels `[B, P, 4]`, never negative.
    pub distances: Tensor,
    /// Quality logits `[B, P]`.
    pub quality: Tensor,
    /// The points.
    pub grid: Grid,
}

/// How predictions become detections: a strategy's choice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Rank {
    /// Threshold and best of each level by the score, which is class probability times quality.
    #[default]
    Score,
    /// Threshold and best of each level by the class probability; quality multiplies it before NMS.
    Class,
}

impl Outputs {
    /// All levels as rows of points.
    pub fn flatten(&self) -> Predictions {
        let rows = |levels: &[Tensor]| {
            let flat: Vec<Tensor> =
                levels.iter().map(|t| t.permute([0, 2, 3, 1]).flatten(1, 2)).collect();
            Tensor::cat(&flat, 1)
        };
        let (cls, distances, quality) =
            (rows(&self.cls), rows(&self.distances), rows(&self.quality).squeeze_dim(-1));
        Predictions {
            cls,
            distances,
            quality,
            grid: Grid { sizes: self.sizes(), offset: self.offset },
        }
    }

    /// `(h, w)` of each level.
    pub fn sizes(&self) -> Vec<(i64, i64)> {
        self.cls.iter().map(|t| (t.size()[2], t.size()[3])).collect()
    }
}

/// The head.
#[derive(Debug)]
pub struct Head {
    cls_tower: Vec<(AnyConv, Norm)>,
    reg_tower: Vec<(AnyConv, Norm)>,
    cls: Conv,
    reg: Conv,
    quality: Conv,
    offset: Option<Conv>,
    scales: Vec<Tensor>,
    distances: Distances,
    quality_tower: Tower,
}

/// Convolutions in a tower.
const STACKED: usize = 4;
/// Score of every class at the start: keeps the first steps' loss small.
const START_SCORE: f64 = 0.02;

impl Head {
    /// Builds the head below `bbox_head.`.
    pub fn new(p: &mut Params, config: &ModelConfig, classes: i64) -> Self {
        let channels = config.channels;
        let conv = |output, bias| ConvSpec {
            input: channels,
            output,
            kernel: 3,
            stride: 1,
            groups: 1,
            init: Init::Normal(0.01),
            bias: Some(bias),
        };
        let in_tower = ConvSpec { bias: config.tower_bias.then_some(0.0), ..conv(channels, 0.0) };
        let tower = |p: &mut Params, name: &str| {
            (0..STACKED)
                .map(|i| {
                    let name = format!("bbox_head.{name}.{i}");
                    let c = if config.dcn_last_conv && i + 1 == STACKED {
                        // mmdetection's start of the head reaches the offsets' convolution, too.
                        AnyConv::Deform(DeformConv::new(
                            p,
                            &format!("{name}.conv"),
                            in_tower,
                            Init::Normal(0.01),
                            true,
                        ))
                    } else {
                        AnyConv::Plain(Conv::new(p, &format!("{name}.conv"), in_tower, true))
                    };
                    (c, Norm::new(p, &format!("{name}.gn"), channels, NormKind::Gn, 1.0, true))
                })
                .collect()
        };
        let cls_tower = tower(p, "cls_convs");
        let reg_tower = tower(p, "reg_convs");
        // With a bias of 0 the relu would leave half the boxes without a gradient for good.
        let start_distance = if config.distances == Distances::Relu { 4.0 } else { 0.0 };
        Self {
            distances: config.distances,
            quality_tower: config.quality_tower,
            cls_tower,
            reg_tower,
            cls: Conv::new(
                p,
                "bbox_head.conv_cls",
                conv(classes, -((1.0 - START_SCORE) / START_SCORE).ln()),
                true,
            ),
            reg: Conv::new(p, "bbox_head.conv_reg", conv(4, start_distance), true),
            quality: Conv::new(p, "bbox_head.conv_centerness", conv(1, 0.0), true),
            offset: config.refine.then(|| Conv::new(p, "bbox_head.reg_offset", conv(8, 0.0), true)),
            scales: (0..STRIDES.len())
                .map(|i| {
                    p.param(
                        format!("bbox_head.scales.{i}.scale"),
                        &[],
                        Init::Const(1.0),
                        true,
                        true,
                    )
                })
                .collect(),
        }
    }

    /// `[P3, .., P7]` to predictions at points with this place in their cells.
    pub fn forward(&self, pyramid: &[Tensor], offset: f64) -> Outputs {
        let mut out = Outputs { cls: vec![], distances: vec![], quality: vec![], offset };
        for (level, x) in pyramid.iter().enumerate() {
            let run = |tower: &[(AnyConv, Norm)]| {
                tower.iter().fold(x.shallow_clone(), |y, (conv, norm)| {
                    norm.forward(&conv.forward(&y), true).relu_()
                })
            };
            let (cls, reg) = (run(&self.cls_tower), run(&self.reg_tower));
            let stride = STRIDES[level];
            let scaled = self.reg.forward(&reg) * &self.scales[level];
            let raw = match self.distances {
                Distances::Relu => scaled.relu() * stride as f64,
                Distances::Exp => scaled.exp(),
            };
            let distances = match &self.offset {
                None => raw,
                Some(offset) => refine(&raw, &offset.forward(&reg), stride),
            };
            out.cls.push(self.cls.forward(&cls));
            out.distances.push(distances);
            out.quality.push(self.quality.forward(if self.quality_tower == Tower::Cls {
                &cls
            } else {
                &reg
            }));
        }
        out
    }

    /// Multiply-adds for P3..P7 of these sizes.
    pub fn cost(&self, p: &[Size]) -> u64 {
        let last = [Some(&self.cls), Some(&self.reg), Some(&self.quality), self.offset.as_ref()];
        let level = |size: Size| -> u64 {
            let towers =
                self.cls_tower.iter().chain(&self.reg_tower).map(|(conv, _)| conv.cost(size).0);
            towers.chain(last.iter().flatten().map(|conv| conv.cost(size).0)).sum()
        };
        p.iter().map(|&size| level(size)).sum()
    }
}

/// DW's refinement (Sec. 3.4): each side's coordinate is read again, bilinearly, at the predicted side's midpoint
/// plus a learned offset, from the map of predicted boxes.
///
/// `distances` `[B, 4, h, w]` in pixels, `offsets` `[B, 8, h, w]` in cells as (dy, dx) for x1, y1, x2, y2.
/// Positions outside the map read zeros, corner by corner, as in the released code.
fn refine(distances: &Tensor, offsets: &Tensor, stride: i64) -> Tensor {
    let size = distances.size();
    let (b, h, w) = (size[0], size[2], size[3]);
    let (kind, device) = (distances.kind(), distances.device());
    let points = geometry::level_points(h, w, stride, 0.5, kind, device).view([1, h, w, 2]);
    let map =
        geometry::decode(&points, &distances.permute([0, 2, 3, 1])).permute([0, 3, 1, 2]).contiguous();
    // Shift to the side's midpoint, in cells: x1 and x2 move along x, y1 and y2 along y.
    let constant =
        |v: [f32; 4]| Tensor::from_slice(&v).to_kind(kind).to_device(device).view([1, 4, 1, 1]);
    let shift = distances * constant([-1.0, -1.0, 1.0, 1.0]) / stride as f64;
    let offsets = offsets.contiguous().view([b, 4, 2, h, w]);
    let along_x = constant([1.0, 0.0, 1.0, 0.0]);
    let along_y = constant([0.0, 1.0, 0.0, 1.0]);
    let cells = |n: i64| Tensor::arange(n, (kind, device));
    let x = offsets.select(2, 1) + &shift * along_x + cells(w).view([1, 1, 1, w]);
    let y = offsets.select(2, 0) + &shift * along_y + cells(h).view([1, 1, h, 1]);
    // grid_sample's coordinates with align_corners = false.
    let grid =
        Tensor::stack(&[(x * 2.0 + 1.0) / w as f64 - 1.0, (y * 2.0 + 1.0) / h as f64 - 1.0], -1);
    let sampled =
        map.view([b * 4, 1, h, w]).grid_sampler_2d(&grid.view([b * 4, h, w, 2]), 0, 0, false);
    let sampled = sampled.view([b, 4, h, w]).permute([0, 2, 3, 1]);
    geometry::encode(&points, &sampled).relu().permute([0, 3, 1, 2])
}

/// Detections' raw numbers, in f32.
#[derive(Debug)]
pub struct Scored {
    /// What points are ranked by `[B, P, C]`.
    pub ranked: Tensor,
    /// What multiplies it afterwards `[B, P]`; nothing where the rank is the score.
    pub factor: Option<Tensor>,
    /// Boxes `[B, P, 4]`, not clipped, pixels of the network input.
    pub boxes: Tensor,
    /// Points of each level.
    pub levels: Vec<usize>,
}

/// Scores and boxes of a batch.
pub fn scored(outputs: &Outputs, rank: Rank) -> Scored {
    let p = outputs.flatten();
    let (cls, quality) =
        (p.cls.to_kind(Kind::Float).sigmoid(), p.quality.to_kind(Kind::Float).sigmoid());
    let boxes =
        geometry::decode(&p.grid.points(Kind::Float, cls.device()), &p.distances.to_kind(Kind::Float));
    let levels = p.grid.sizes.iter().map(|(h, w)| (h * w) as usize).collect();
    match rank {
        Rank::Score => Scored { ranked: cls * quality.unsqueeze(-1), factor: None, boxes, levels },
        Rank::Class => Scored { ranked: cls, factor: Some(quality), boxes, levels },
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn head(config: &ModelConfig) -> (Params, Head) {
        tch::manual_seed(5);
        let mut params = Params::new(Kind::Double, Device::Cpu);
        let head = Head::new(
            &mut params,
            &ModelConfig { channels: 8, refine: false, ..config.clone() },
            2,
        );
        (params, head)
    }

    /// FCOS's plain head: exponential distances in pixels, quality from the class tower, towers without bias.
    #[test]
    fn the_plain_head() {
        let plain = ModelConfig {
            distances: Distances::Exp,
            quality_tower: Tower::Cls,
            tower_bias: false,
            ..ModelConfig::default()
        };
        let pyramid: Vec<Tensor> =
            (0..5).map(|_| Tensor::randn([1, 8, 4, 4], (Kind::Double, Device::Cpu))).collect();
        for (config, tower, biases) in
            [(plain, "cls_convs", 0), (ModelConfig::default(), "reg_convs", 8)]
        {
            let (params, head) = head(&config);
            let in_towers = params
                .entries
                .iter()
                .filter(|e| e.name.contains("_convs") && e.name.ends_with("conv.bias"));
            assert_eq!(in_towers.count(), biases);
            let out = head.forward(&pyramid, 0.5);
            out.quality[0].sum(Kind::Double).backward();
            for other in ["cls_convs", "reg_convs"] {
                let weight = params
                    .entries
                    .iter()
                    .find(|e| e.name == format!("bbox_head.{other}.0.conv.weight"))
                    .unwrap();
                assert_eq!(weight.tensor.grad().defined(), other == tower, "{other}");
            }
            // A level's scale multiplies before the exponential, and before the stride.
            let (before, scale) = (out.distances[4].copy(), head.scales[4].shallow_clone());
            tch::no_grad(|| drop(scale.shallow_clone().fill_(2.0)));
            let after = head.forward(&pyramid, 0.5).distances[4].shallow_clone();
            let expected =
                if config.distances == Distances::Exp { before.square() } else { before * 2.0 };
            assert!(after.allclose(&expected, 1e-12, 0.0, false), "{:?}", config.distances);
        }
    }
}
