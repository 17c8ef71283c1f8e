//! FCOS head with DW's box refinement: two towers shared by all levels, four predictions.

use tch::{Kind, Tensor};

use super::ModelConfig;
use super::deform::{AnyConv, DeformConv};
use super::layers::{Conv, ConvSpec, Norm, NormKind, Size};
use super::params::{Init, Params, Role};
use crate::boxes::{self, STRIDES};

/// What the head says of one batch; one tensor a level.
#[derive(Debug, Default)]
pub struct Outputs {
    /// Class logits `[B, C, h, w]`.
    pub cls: Vec<Tensor>,
    /// Distances (l, t, r, b) in pixels `[B, 4, h, w]`, never negative.
    pub distances: Vec<Tensor>,
    /// Objectness logits `[B, 1, h, w]` (the branch called centerness, which has no target of its own in DW).
    pub objectness: Vec<Tensor>,
}

impl Outputs {
    /// All levels as rows of points: class logits `[B, P, C]`, distances `[B, P, 4]`, objectness logits `[B, P]`.
    pub fn flatten(&self) -> (Tensor, Tensor, Tensor) {
        let rows = |levels: &[Tensor]| {
            let flat: Vec<Tensor> = levels.iter().map(|t| t.permute([0, 2, 3, 1]).flatten(1, 2)).collect();
            Tensor::cat(&flat, 1)
        };
        (rows(&self.cls), rows(&self.distances), rows(&self.objectness).squeeze_dim(-1))
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
    objectness: Conv,
    offset: Option<Conv>,
    scales: Vec<Tensor>,
    /// Mean and sigma of the released formula's centre prior, `[C, 2]`: kept in the checkpoint, never trained.
    pub prior: (Tensor, Tensor),
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
        let tower = |p: &mut Params, name: &str| {
            (0..STACKED)
                .map(|i| {
                    let name = format!("bbox_head.{name}.{i}");
                    let c = if config.dcn_last_conv && i + 1 == STACKED {
                        // mmdetection's start of the head reaches the offsets' convolution, too.
                        AnyConv::Deform(DeformConv::new(p, &format!("{name}.conv"), conv(channels, 0.0), Init::Normal(0.01), true))
                    } else {
                        AnyConv::Plain(Conv::new(p, &format!("{name}.conv"), conv(channels, 0.0), true))
                    };
                    (c, Norm::new(p, &format!("{name}.gn"), channels, NormKind::Gn, 1.0, true))
                })
                .collect()
        };
        let cls_tower = tower(p, "cls_convs");
        let reg_tower = tower(p, "reg_convs");
        Self {
            cls_tower,
            reg_tower,
            cls: Conv::new(p, "bbox_head.conv_cls", conv(classes, -((1.0 - START_SCORE) / START_SCORE).ln()), true),
            // With a bias of 0 the relu would kill half the boxes for good.
            reg: Conv::new(p, "bbox_head.conv_reg", conv(4, 4.0), true),
            objectness: Conv::new(p, "bbox_head.conv_centerness", conv(1, 0.0), true),
            offset: config.refine.then(|| Conv::new(p, "bbox_head.reg_offset", conv(8, 0.0), true)),
            scales: (0..STRIDES.len()).map(|i| p.param(format!("bbox_head.scales.{i}.scale"), &[], Init::Const(1.0), true, true)).collect(),
            prior: (
                p.buffer("bbox_head.center_prior.mean", &[classes, 2], 0.0, Role::Constant),
                // 1 + 0.11, added in f32 as the released code does.
                p.buffer("bbox_head.center_prior.sigma", &[classes, 2], f64::from(1.0f32 + 0.11f32), Role::Constant),
            ),
        }
    }

    /// `[P3, .., P7]` to predictions.
    pub fn forward(&self, pyramid: &[Tensor]) -> Outputs {
        let mut out = Outputs::default();
        for (level, x) in pyramid.iter().enumerate() {
            let run = |tower: &[(AnyConv, Norm)]| {
                tower.iter().fold(x.shallow_clone(), |y, (conv, norm)| norm.forward(&conv.forward(&y), true).relu_())
            };
            let (cls, reg) = (run(&self.cls_tower), run(&self.reg_tower));
            let stride = STRIDES[level];
            let raw = (self.reg.forward(&reg) * &self.scales[level]).relu() * stride as f64;
            let distances = match &self.offset {
                None => raw,
                Some(offset) => refine(&raw, &offset.forward(&reg), stride),
            };
            out.cls.push(self.cls.forward(&cls));
            out.distances.push(distances);
            out.objectness.push(self.objectness.forward(&reg));
        }
        out
    }

    /// Multiply-adds for P3..P7 of these sizes.
    pub fn cost(&self, p: &[Size]) -> u64 {
        let last = [Some(&self.cls), Some(&self.reg), Some(&self.objectness), self.offset.as_ref()];
        let level = |size: Size| -> u64 {
            let towers = self.cls_tower.iter().chain(&self.reg_tower).map(|(conv, _)| conv.cost(size).0);
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
    let points = boxes::level_points(h, w, stride, kind, device).view([1, h, w, 2]);
    let map = boxes::decode(&points, &distances.permute([0, 2, 3, 1])).permute([0, 3, 1, 2]).contiguous();
    // Shift to the side's midpoint, in cells: x1 and x2 move along x, y1 and y2 along y.
    let constant = |v: [f32; 4]| Tensor::from_slice(&v).to_kind(kind).to_device(device).view([1, 4, 1, 1]);
    let shift = distances * constant([-1.0, -1.0, 1.0, 1.0]) / stride as f64;
    let offsets = offsets.contiguous().view([b, 4, 2, h, w]);
    let along_x = constant([1.0, 0.0, 1.0, 0.0]);
    let along_y = constant([0.0, 1.0, 0.0, 1.0]);
    let cells = |n: i64| Tensor::arange(n, (kind, device));
    let x = offsets.select(2, 1) + &shift * along_x + cells(w).view([1, 1, 1, w]);
    let y = offsets.select(2, 0) + &shift * along_y + cells(h).view([1, 1, h, 1]);
    // grid_sample's coordinates with align_corners = false.
    let grid = Tensor::stack(&[(x * 2.0 + 1.0) / w as f64 - 1.0, (y * 2.0 + 1.0) / h as f64 - 1.0], -1);
    let sampled = map.view([b * 4, 1, h, w]).grid_sampler_2d(&grid.view([b * 4, h, w, 2]), 0, 0, false);
    let sampled = sampled.view([b, 4, h, w]).permute([0, 2, 3, 1]);
    boxes::encode(&points, &sampled).relu().permute([0, 3, 1, 2])
}

/// Scores `[B, P, C]` and boxes `[B, P, 4]` (not clipped) of a batch, in f32.
pub fn predictions(outputs: &Outputs) -> (Tensor, Tensor) {
    let (cls, distances, objectness) = outputs.flatten();
    let scores = cls.to_kind(Kind::Float).sigmoid() * objectness.to_kind(Kind::Float).sigmoid().unsqueeze(-1);
    let points = boxes::Points::new(&outputs.sizes(), Kind::Float, cls.device());
    (scores, boxes::decode(&points.xy, &distances.to_kind(Kind::Float)))
}
