//! FCOS head with DW's box refinement: two towers, shared by all levels, and the branches for
//! classes, distances, quality and refinement offsets.

use tch::{Kind, Tensor};

use super::parts::{DEVIATION, scales, score_bias};
use super::quality::QualityPredictor;
use super::sampling::{cells, sample};
use super::{ClassOutput, Outputs};
use crate::geometry::{self, BINS, STRIDES};
use crate::model::backbone::deform::{AnyConv, DeformConv};
use crate::model::config::{Distances, HeadNorm, ModelConfig, Tower};
use crate::model::layers::{Conv, ConvSpec, Norm, NormKind, Size, Then};
use crate::model::params::{Init, Params};

/// FCOS head.
#[derive(Debug)]
pub struct Head {
    cls_tower: Vec<(AnyConv, Norm)>,
    reg_tower: Vec<(AnyConv, Norm)>,
    cls: Conv,
    reg: Conv,
    quality: Option<Conv>,
    predictor: Option<QualityPredictor>,
    /// Offsets of the box refinement, if there is one.
    offset: Option<Conv>,
    /// Factor of the regression branch's output on each level, scalars.
    scales: Vec<Tensor>,
    sides: Sides,
    distances: Distances,
    quality_tower: Tower,
}

/// Number of convolutions in a tower.
pub(crate) const TOWER_CONVS: usize = 4;
/// Initial class probability.
const INITIAL_SCORE: f64 = 0.02;

/// A 3x3 convolution with initial weights N(0, 0.01).
fn conv_spec(input: i64, output: i64, bias: Option<f64>) -> ConvSpec {
    let init = Init::Normal(DEVIATION);
    ConvSpec { input, output, kernel: 3, stride: 1, groups: 1, init, bias }
}

/// Prefix of the names of the branches: those of mmdetection's heads, so that weights of ATSS, PAA,
/// GFL and GFLv2 load.
pub(crate) fn branch_prefix(distances: Distances) -> &'static str {
    match distances {
        Distances::Relu | Distances::Exp => "conv",
        Distances::Deltas => "atss",
        Distances::Distribution => "gfl",
    }
}

/// Builds a tower; the names of its tensors start with `bbox_head.NAME`.
fn tower(p: &mut Params, config: &ModelConfig, name: &str) -> Vec<(AnyConv, Norm)> {
    let channels = config.channels;
    let spec = conv_spec(channels, channels, config.tower_bias.then_some(0.0));
    let mut layers = vec![];
    for i in 0..TOWER_CONVS {
        let conv_name = format!("bbox_head.{name}.{i}.conv");
        let conv = if config.dcn_last_conv && i + 1 == TOWER_CONVS {
            // mmdetection initialises the offsets' convolution like the head's others.
            AnyConv::Deform(DeformConv::new(p, &conv_name, spec, Init::Normal(0.01), true))
        } else {
            AnyConv::Plain(Conv::new(p, &conv_name, spec, true))
        };
        let norm_name = format!("bbox_head.{name}.{i}.gn");
        let norm = match config.head_norm {
            HeadNorm::Gn => Norm::new(p, &norm_name, channels, NormKind::Gn, 1.0, true),
            HeadNorm::None => Norm::None,
        };
        layers.push((conv, norm));
    }
    layers
}

/// A tower for the levels of one forward pass.
struct Pass<'a> {
    layers: &'a [(AnyConv, Norm)],
    /// The convolutions with their weights rounded once for all levels; `None` for deformable ones.
    rounded: Vec<Option<AnyConv>>,
}

impl<'a> Pass<'a> {
    /// Prepares the tower for features of `kind`.
    fn new(layers: &'a [(AnyConv, Norm)], kind: Kind) -> Self {
        Self { layers, rounded: layers.iter().map(|(conv, _)| conv.rounded(kind)).collect() }
    }

    /// Features `[B, C, h, w]` of a level to those of the branches, of the same shape.
    fn run(&self, x: &Tensor) -> Tensor {
        let layers = self.layers.iter().zip(&self.rounded);
        layers.fold(x.shallow_clone(), |y, ((conv, norm), rounded)| {
            rounded.as_ref().unwrap_or(conv).normalised(&y, norm, Then::RELU, true)
        })
    }
}

impl Head {
    /// Builds the head; the names of its tensors start with `bbox_head.`.
    pub fn new(p: &mut Params, config: &ModelConfig, classes: i64) -> Self {
        let conv = |p: &mut Params, name: &str, output, bias| {
            let spec = conv_spec(config.channels, output, Some(bias));
            Conv::new(p, &format!("bbox_head.{name}"), spec, true)
        };
        // -0 + 0 is 0: the bias of the score 0.5.
        let [class_bias, quality_bias] =
            [INITIAL_SCORE, config.initial_quality].map(|score| score_bias(score) + 0.0);
        // With a bias of 0, half of the distances would be negative before the ReLU and get no
        // gradient.
        let distance_bias = if config.distances == Distances::Relu { 4.0 } else { 0.0 };
        let num_sides = if config.distances == Distances::Distribution { 4 * BINS } else { 4 };
        let system = branch_prefix(config.distances);
        let name = |branch: &str| format!("{system}_{branch}");
        let has_quality = matches!(config.quality_tower, Tower::Reg | Tower::Cls);
        let has_predictor = config.quality_tower == Tower::Distribution;
        // Struct fields are initialised in the order written: the parameters' order of use.
        Self {
            distances: config.distances,
            quality_tower: config.quality_tower,
            cls_tower: tower(p, config, "cls_convs"),
            reg_tower: tower(p, config, "reg_convs"),
            cls: conv(p, &name("cls"), classes, class_bias),
            reg: conv(p, &name("reg"), num_sides, distance_bias),
            quality: has_quality.then(|| conv(p, &name("centerness"), 1, quality_bias)),
            predictor: has_predictor.then(|| QualityPredictor::new(p)),
            offset: config.refine.then(|| conv(p, "reg_offset", 8, 0.0)),
            scales: scales(p, "scales"),
            sides: Sides::new(p),
        }
    }

    /// Features `[P3, .., P7]`, each `[B, channels, h, w]`, to raw predictions. See
    /// [`crate::geometry::Grid::offset`] for `offset`.
    pub fn forward(&self, pyramid: &[Tensor], offset: f64) -> Outputs {
        let mut out = Outputs::empty(ClassOutput::Logit, offset);
        // The branches on the regression tower run as one convolution: its gradient is one map of
        // the tower's size, not one for each branch.
        let quality_last = self.quality_tower == Tower::Reg;
        let mut branches = vec![&self.reg];
        branches.extend(&self.offset);
        branches.extend(self.quality.as_ref().filter(|_| quality_last));
        let activations = pyramid[0].kind();
        let merged = Conv::merged(&branches).rounded(activations);
        let cls_branch = self.cls.rounded(activations);
        let [cls_tower, reg_tower] =
            [&self.cls_tower, &self.reg_tower].map(|tower| Pass::new(tower, activations));
        for (level, x) in pyramid.iter().enumerate() {
            let (cls, reg) = (cls_tower.run(x), reg_tower.run(x));
            let stride = STRIDES[level];
            // Raw predictions have the parameters' kind: pixels need more mantissa than bf16 has.
            let kind = self.scales[level].kind();
            let branch = |conv: &Conv, x: &Tensor| conv.forward_as(x, kind);
            let regression = branch(&merged, &reg);
            let num_sides = self.reg.outputs();
            let scaled = regression.narrow(1, 0, num_sides) * &self.scales[level];
            let raw = match self.distances {
                Distances::Relu => scaled.relu() * stride as f64,
                Distances::Exp => scaled.exp(),
                Distances::Distribution => geometry::distances_of_bins(&scaled, stride),
                Distances::Deltas => geometry::distances_of_deltas(&scaled, stride),
            };
            let distances = if self.offset.is_some() {
                let offsets = regression.narrow(1, num_sides, 8);
                refine(&raw, &offsets, stride, offset, &self.sides)
            } else {
                raw
            };
            out.cls.push(branch(&cls_branch, &cls));
            out.distances.push(distances);
            if let Some(predictor) = &self.predictor {
                let score = out.cls[level].sigmoid() * predictor.forward(&scaled);
                out.cls[level] = score;
                out.cls_is = ClassOutput::Probability;
            }
            if self.distances == Distances::Distribution {
                out.bins.push(scaled);
            }
            out.quality.extend(self.quality.as_ref().map(|conv| match self.quality_tower {
                Tower::Cls => branch(conv, &cls),
                _ => regression.narrow(1, regression.size()[1] - 1, 1),
            }));
        }
        out
    }

    /// Multiply-adds for P3..P7 of sizes `p`.
    pub fn cost(&self, p: &[Size]) -> u64 {
        let optional = [self.quality.as_ref(), self.offset.as_ref()];
        let last = [[Some(&self.cls), Some(&self.reg)], optional].concat();
        let level = |size: Size| -> u64 {
            let towers =
                self.cls_tower.iter().chain(&self.reg_tower).map(|(conv, _)| conv.cost(size).0);
            let predictor = self.predictor.iter().map(|p| p.cost(size));
            towers.chain(last.iter().flatten().map(|conv| conv.cost(size).0)).chain(predictor).sum()
        };
        p.iter().map(|&size| level(size)).sum()
    }
}

/// Constants of the box refinement for the sides x1, y1, x2, y2, each `[1, 4, 1, 1]`. Created once:
/// a copy in every step would make the host wait for the GPU.
#[derive(Debug)]
struct Sides {
    /// Direction from the point to the side.
    direction: Tensor,
    /// 1 for the sides whose midpoint lies left or right of the point, else 0.
    along_x: Tensor,
    /// 1 for the others.
    along_y: Tensor,
}

impl Sides {
    fn new(p: &Params) -> Self {
        let per_side = |v: [f32; 4]| p.constant(&v, &[1, 4, 1, 1]);
        Self {
            direction: per_side([-1.0, -1.0, 1.0, 1.0]),
            along_x: per_side([1.0, 0.0, 1.0, 0.0]),
            along_y: per_side([0.0, 1.0, 0.0, 1.0]),
        }
    }
}

/// DW's box refinement (Sec. 3.4): each side's coordinate is sampled again, bilinearly, from the
/// map of predicted boxes, at the midpoint of the predicted side plus a learned offset.
///
/// `ltrb` `[B, 4, h, w]` are the distances in pixels, `offsets` `[B, 8, h, w]` the offsets in cells
/// as (dy, dx) for each of x1, y1, x2, y2, `offset` that of the points. Returns refined distances
/// `[B, 4, h, w]`, pixels. Samples outside the map read zeros, corner by corner, as in the released
/// code.
fn refine(ltrb: &Tensor, offsets: &Tensor, stride: i64, offset: f64, sides: &Sides) -> Tensor {
    let size = ltrb.size();
    let (b, h, w) = (size[0], size[2], size[3]);
    let (kind, device) = (ltrb.kind(), ltrb.device());
    let points_1hw2 = geometry::level_points(h, w, stride, offset, kind, device).view([1, h, w, 2]);
    let boxes_b4hw =
        geometry::decode(&points_1hw2, &ltrb.permute([0, 2, 3, 1])).permute([0, 3, 1, 2]);
    // Shift from the point to the midpoint of the side, in cells: of x1 and x2 along x, of y1 and
    // y2 along y.
    let shift = ltrb * &sides.direction / stride as f64;
    let offsets_b42hw = offsets.contiguous().view([b, 4, 2, h, w]);
    let (x_cells, y_cells) = cells(h, w, ltrb);
    let x_b4hw = offsets_b42hw.select(2, 1) + &shift * &sides.along_x + x_cells;
    let y_b4hw = offsets_b42hw.select(2, 0) + &shift * &sides.along_y + y_cells;
    let sampled = sample(&boxes_b4hw, x_b4hw, y_b4hw).permute([0, 2, 3, 1]);
    geometry::encode(&points_1hw2, &sampled).relu().permute([0, 3, 1, 2])
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

    /// Compares FCOS's plain head with the default one, including the biases of the towers.
    #[test]
    fn plain_head_has_exponential_distances_and_quality_from_the_class_tower() {
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
            // The scale of a level is applied before the exponential.
            let (before, scale) = (out.distances[4].copy(), head.scales[4].shallow_clone());
            tch::no_grad(|| drop(scale.shallow_clone().fill_(2.0)));
            let after = head.forward(&pyramid, 0.5).distances[4].shallow_clone();
            let expected =
                if config.distances == Distances::Exp { before.square() } else { before * 2.0 };
            assert!(after.allclose(&expected, 1e-12, 0.0, false), "{:?}", config.distances);
        }
    }

    /// A side whose midpoint is outside the map reads the coordinate 0, wherever the points are.
    #[test]
    fn refinement_outside_the_map_gives_the_border_of_the_image() {
        let (_, head) = head(&ModelConfig::default());
        for offset in [0.0, 0.5] {
            let ltrb = Tensor::full([1, 4, 5, 6], 400.0, (Kind::Double, Device::Cpu));
            let still = ltrb.zeros_like().repeat([1, 2, 1, 1]);
            let refined = refine(&ltrb, &still, 8, offset, &head.sides);
            for column in 0..6 {
                let left = refined.double_value(&[0, 0, 3, column]);
                assert!((left - (column as f64 + offset) * 8.0).abs() < 1e-12, "{offset}: {left}");
            }
        }
    }

    #[test]
    fn quality_starts_at_the_configured_probability() {
        for (initial_quality, expected) in [(0.5, 0.0), (0.01, -99f64.ln())] {
            let (params, _) = head(&ModelConfig { initial_quality, ..ModelConfig::default() });
            let name = "bbox_head.conv_centerness.bias";
            let bias = &params.entries.iter().find(|e| e.name == name).unwrap().tensor;
            assert!((bias.double_value(&[0]) - expected).abs() < 1e-12);
            assert!(bias.double_value(&[0]).is_sign_negative() == (expected < 0.0));
        }
    }

    /// The names are those of mmdetection's ATSSHead, GFLHead and FCOSHead.
    #[test]
    fn branches_have_the_names_of_the_systems() {
        for (distances, quality_tower, expected) in [
            (Distances::Relu, Tower::Reg, ["conv_cls", "conv_reg", "conv_centerness"]),
            (Distances::Deltas, Tower::Reg, ["atss_cls", "atss_reg", "atss_centerness"]),
            (Distances::Distribution, Tower::Distribution, ["gfl_cls", "gfl_reg", "reg_conf.0"]),
        ] {
            let (params, _) =
                head(&ModelConfig { distances, quality_tower, ..ModelConfig::default() });
            for name in expected {
                let name = format!("bbox_head.{name}.weight");
                assert!(params.entries.iter().any(|e| e.name == name), "{name}");
            }
        }
    }
}
