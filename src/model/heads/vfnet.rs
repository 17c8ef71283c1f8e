//! The head of VarifocalNet (Zhang et al., CVPR 2021, Sec. 3.3 and 3.4): a first box is predicted,
//! then features are sampled at nine positions of that box (a star) to predict the class scores and
//! a factor for each of its distances.
//!
//! Shapes: B images, h x w size of a level in cells.

use tch::Tensor;

use super::parts::{DEVIATION, conv, normed, scales, score_bias};
use super::{ClassOutput, Outputs};
use crate::geometry::STRIDES;
use crate::model::backbone::deform::deform_conv2d;
use crate::model::config::ModelConfig;
use crate::model::layers::{Conv, Norm, Size, Then};
use crate::model::params::{Init, Params};

/// Number of convolutions in a tower.
pub(crate) const TOWER_CONVS: usize = 3;
/// Initial class probability.
const INITIAL_SCORE: f64 = 0.01;
/// Factor of the gradient that reaches the first box through the positions of the star.
const STAR_GRADIENT: f64 = 0.1;
/// The first distances are predicted as multiples of this many strides.
pub(crate) const UNIT: f64 = 8.0;

/// The head of VarifocalNet.
#[derive(Debug)]
pub struct Head {
    cls_tower: Vec<(Conv, Norm)>,
    reg_tower: Vec<(Conv, Norm)>,
    /// One more layer, only for the first box.
    first_layer: (Conv, Norm),
    first: Conv,
    first_scales: Vec<Tensor>,
    refine_star: Star,
    refine: Conv,
    refine_scales: Vec<Tensor>,
    cls_star: Star,
    cls: Conv,
    places: Places,
}

impl Head {
    /// Builds the head; the names of its tensors start with `bbox_head.`.
    pub fn new(p: &mut Params, config: &ModelConfig, classes: i64) -> Self {
        let width = config.channels;
        let score_bias = score_bias(INITIAL_SCORE);
        let tower = |p: &mut Params, name: &str| {
            (0..TOWER_CONVS).map(|i| normed(p, &format!("{name}.{i}"), (width, width, 3))).collect()
        };
        // Struct fields are initialised in the order written: the parameters' order of use.
        Self {
            cls_tower: tower(p, "cls_convs"),
            reg_tower: tower(p, "reg_convs"),
            first_layer: normed(p, "vfnet_reg_conv", (width, width, 3)),
            first: conv(p, "vfnet_reg", (width, 4, 3), DEVIATION, Some(0.0)),
            first_scales: scales(p, "scales"),
            refine_star: Star::new(p, "vfnet_reg_refine_dconv", width),
            refine: conv(p, "vfnet_reg_refine", (width, 4, 3), DEVIATION, Some(0.0)),
            refine_scales: scales(p, "scales_refine"),
            cls_star: Star::new(p, "vfnet_cls_dconv", width),
            cls: conv(p, "vfnet_cls", (width, classes, 3), DEVIATION, Some(score_bias)),
            places: Places::new(p),
        }
    }

    /// Features `[P3, .., P7]`, each `[B, channels, h, w]`, to raw predictions with the first
    /// boxes. See [`crate::geometry::Grid::offset`] for `offset`.
    pub fn forward(&self, pyramid: &[Tensor], offset: f64) -> Outputs {
        let mut out = Outputs::empty(ClassOutput::Logit, offset);
        for (level, x) in pyramid.iter().enumerate() {
            let kind = self.first_scales[level].kind();
            let run = |layers: &[(Conv, Norm)], x: &Tensor| {
                layers.iter().fold(x.shallow_clone(), |y, (conv, norm)| {
                    conv.normalised(&y, norm, Then::RELU, true)
                })
            };
            let (cls, reg) = (run(&self.cls_tower, x), run(&self.reg_tower, x));
            let (conv, norm) = &self.first_layer;
            let raw = self.first.forward_as(&conv.normalised(&reg, norm, Then::RELU, true), kind);
            let stride = STRIDES[level] as f64;
            let first = (raw * &self.first_scales[level]).exp() * (UNIT * stride);
            let places = self.places.of(&first, stride);
            let reg = self.refine_star.forward(&reg, &places);
            let factors = self.refine.forward_as(&reg, kind) * &self.refine_scales[level];
            out.distances.push(factors.exp() * first.detach());
            out.first.push(first);
            out.cls.push(self.cls.forward_as(&self.cls_star.forward(&cls, &places), kind));
        }
        out
    }

    /// Multiply-adds for P3..P7 of sizes `p`.
    pub fn cost(&self, p: &[Size]) -> u64 {
        let layers = self.cls_tower.iter().chain(&self.reg_tower).chain([&self.first_layer]);
        let convs: Vec<&Conv> =
            layers.map(|l| &l.0).chain([&self.first, &self.refine, &self.cls]).collect();
        let stars = [&self.refine_star, &self.cls_star];
        let level = |&(h, w): &Size| {
            let plain: u64 = convs.iter().map(|c| c.cost((h, w)).0).sum();
            plain + stars.iter().map(|s| s.weight.numel() as u64 * (h * w) as u64).sum::<u64>()
        };
        p.iter().map(level).sum()
    }
}

/// A deformable 3x3 convolution whose taps sample the star of a box, followed by ReLU.
#[derive(Debug)]
struct Star {
    weight: Tensor,
}

impl Star {
    fn new(p: &mut Params, name: &str, width: i64) -> Self {
        let name = format!("bbox_head.{name}.weight");
        Self { weight: p.param(name, &[width, width, 3, 3], Init::KaimingUniform, true, true) }
    }

    /// `[B, F, h, w]` to the same shape and kind; computed in the parameters' kind, like all
    /// deformable convolutions.
    fn forward(&self, x: &Tensor, places: &Tensor) -> Tensor {
        let (kind, x) = (x.kind(), x.to_kind(self.weight.kind()));
        let size = places.size();
        let all = Tensor::ones([size[0], 9, size[2], size[3]], (x.kind(), x.device()));
        let y = deform_conv2d(&x, places, &all, &self.weight, 1, 1);
        Then::RELU.apply(y).to_kind(kind)
    }
}

/// Constants that compute the star of a box: its anchor point, the projections of the point onto
/// the sides, and the corners.
#[derive(Debug)]
struct Places {
    /// `[4, 18]`: (dy, dx) of each tap from the distances (l, t, r, b).
    star: Tensor,
    /// Positions of the taps of a plain convolution `[1, 18, 1, 1]`.
    plain: Tensor,
}

/// The constants `[18, 4]` and `[18]` of [`Places`].
pub(crate) fn star() -> (Vec<f32>, Vec<f32>) {
    let (mut star, mut plain) = (vec![], vec![]);
    for row in [-1.0f32, 0.0, 1.0] {
        for column in [-1.0f32, 0.0, 1.0] {
            // -1 is the left or upper side of the box, 1 the right or lower one.
            let (l, r) = (column.min(0.0), column.max(0.0));
            let (t, b) = (row.min(0.0), row.max(0.0));
            star.extend([0.0, t, 0.0, b, l, 0.0, r, 0.0]);
            plain.extend([row, column]);
        }
    }
    (star, plain)
}

impl Places {
    fn new(p: &Params) -> Self {
        let (star, plain) = star();
        Self { star: p.constant(&star, &[18, 4]).tr(), plain: p.constant(&plain, &[1, 18, 1, 1]) }
    }

    /// Offsets `[B, 18, h, w]`, cells, of the taps for boxes with distances `[B, 4, h, w]`, pixels.
    fn of(&self, distances: &Tensor, stride: f64) -> Tensor {
        // Equal to `distances`, with a smaller gradient.
        let mixed = distances * STAR_GRADIENT + distances.detach() * (1.0 - STAR_GRADIENT);
        // Not a convolution, in which TF32 would round the distances to 11 bits.
        let offsets = mixed.permute([0, 2, 3, 1]).matmul(&(&self.star / stride));
        offsets.permute([0, 3, 1, 2]) - &self.plain
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    /// The star of a box that extends one stride to each side samples where a plain convolution
    /// does.
    #[test]
    fn the_star_of_a_box_of_one_cell_is_a_plain_convolution() {
        tch::manual_seed(4);
        let options = (Kind::Double, Device::Cpu);
        let mut params = Params::new(options.0, options.1);
        let star = Star::new(&mut params, "star", 8);
        let x = Tensor::randn([2, 8, 5, 6], options);
        let places = Places::new(&params);
        let unit = Tensor::full([2, 4, 5, 6], 16.0, options);
        let found = star.forward(&x, &places.of(&unit, 16.0));
        let none: Option<&Tensor> = None;
        let expected = x.conv2d(&star.weight, none, [1, 1], [1, 1], [1, 1], 1).relu();
        assert!(found.allclose(&expected, 1e-12, 1e-12, false));
    }

    /// Corners of a box that is not symmetric, and projections of the point onto its sides.
    #[test]
    fn places_are_those_of_the_box() {
        let options = (Kind::Double, Device::Cpu);
        let ltrb = Tensor::from_slice(&[8.0f64, 16.0, 24.0, 32.0]).view([1, 4, 1, 1]);
        let ltrb = ltrb.set_requires_grad(true);
        let places = Places::new(&Params::new(options.0, options.1));
        let offsets = places.of(&ltrb, 8.0);
        let at = (offsets.detach() + &places.plain).view([9, 2]);
        let rows: Vec<f64> = Vec::try_from(at.flatten(0, 1)).unwrap();
        let expected = [
            [-2.0, -1.0],
            [-2.0, 0.0],
            [-2.0, 3.0],
            [0.0, -1.0],
            [0.0, 0.0],
            [0.0, 3.0],
            [4.0, -1.0],
            [4.0, 0.0],
            [4.0, 3.0],
        ];
        assert_eq!(rows, expected.concat());
        offsets.abs().sum(Kind::Double).backward();
        let gradient: Vec<f64> = Vec::try_from(ltrb.grad().view([-1])).unwrap();
        assert!(gradient.iter().all(|g| g.abs() <= 3.0 * STAR_GRADIENT / 8.0 + 1e-12));
    }

    /// Distances (l, t, r, b) of the boxes of a map of 3 x 4 cells, pixels.
    fn distances() -> Tensor {
        tch::manual_seed(9);
        Tensor::rand([1, 4, 3, 4], (Kind::Double, Device::Cpu)) * 22.0 + 1.0
    }

    /// Compares with the sum over the nine positions of a box, each sampled by bilinear
    /// interpolation with zeros around the map, written out.
    #[test]
    fn a_star_is_the_sum_over_its_places() {
        let options = (Kind::Double, Device::Cpu);
        let (ltrb, stride) = (distances(), 8.0);
        let x = Tensor::randn([1, 1, 3, 4], options);
        let mut params = Params::new(options.0, options.1);
        let star = Star::new(&mut params, "star", 1);
        let pixel = |row: f64, column: f64| {
            let inside = (0.0..3.0).contains(&row) && (0.0..4.0).contains(&column);
            if inside { x.double_value(&[0, 0, row as i64, column as i64]) } else { 0.0 }
        };
        let sample = |row: f64, column: f64| {
            let corner =
                |r: f64, c: f64| (1.0 - (row - r).abs()) * (1.0 - (column - c).abs()) * pixel(r, c);
            let (top, left) = (row.floor(), column.floor());
            corner(top, left)
                + corner(top, left + 1.0)
                + corner(top + 1.0, left)
                + corner(top + 1.0, left + 1.0)
        };
        let found = star.forward(&x, &Places::new(&params).of(&ltrb, stride));
        for (row, column) in (0..3).flat_map(|r| (0..4).map(move |c| (r, c))) {
            let side = |i: i64| ltrb.double_value(&[0, i, row, column]) / stride;
            let rows = [row as f64 - side(1), row as f64, row as f64 + side(3)];
            let columns = [column as f64 - side(0), column as f64, column as f64 + side(2)];
            let mut sum = 0.0;
            for (i, j) in (0..3).flat_map(|i| (0..3).map(move |j| (i, j))) {
                let weight = star.weight.double_value(&[0, 0, i as i64, j as i64]);
                sum += weight * sample(rows[i], columns[j]);
            }
            let found = found.double_value(&[0, 0, row, column]);
            assert!((found - sum.max(0.0)).abs() < 1e-12, "{row} {column}: {found} {sum}");
        }
    }

    /// The gradient of the distances is a tenth of the true one.
    #[test]
    fn the_gradient_of_the_places_is_scaled() {
        let options = (Kind::Double, Device::Cpu);
        let ltrb = distances().set_requires_grad(true);
        let mut params = Params::new(options.0, options.1);
        let (star, places) = (Star::new(&mut params, "star", 8), Places::new(&params));
        let x = Tensor::randn([1, 8, 3, 4], options);
        let value = |ltrb: &Tensor| star.forward(&x, &places.of(ltrb, 8.0)).sum(None);
        value(&ltrb).backward();
        let step = 1e-6;
        for i in 0..ltrb.numel() as i64 {
            let moved = |by: f64| {
                let changed = ltrb.detach().copy();
                let _ = changed.view([-1]).narrow(0, i, 1).g_add_scalar_(by);
                tch::no_grad(|| value(&changed).double_value(&[]))
            };
            let slope = (moved(step) - moved(-step)) / (2.0 * step);
            let found = ltrb.grad().view([-1]).double_value(&[i]);
            assert!((found - STAR_GRADIENT * slope).abs() < 1e-7, "{i}: {found} {slope}");
        }
    }
}
