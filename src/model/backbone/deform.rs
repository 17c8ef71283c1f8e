//! Modulated deformable convolution (DCNv2; Zhu et al., CVPR 2019, Eq. 1), with the tensor names of
//! mmcv's `ModulatedDeformConv2dPack`.
//!
//! Every kernel tap samples the input bilinearly at a learned offset and multiplies the sample by a
//! learned mask. Offsets and mask are predicted by a plain convolution of the same input.

use tch::{Kind, Tensor};

use crate::model::layers::{Conv, ConvSpec, Norm, Size, Then};
use crate::model::params::{Init, Params};

/// A deformable convolution with the convolution that predicts its offsets.
#[derive(Debug)]
pub struct DeformConv {
    offset: Conv,
    weight: Tensor,
    bias: Option<Tensor>,
    stride: i64,
    groups: i64,
}

impl DeformConv {
    /// Builds the deformable convolution `name`. The convolution of offsets and mask is
    /// `name.conv_offset`, with the initial weights `offsets`. `spec.init` is not used: as in mmcv,
    /// weights are uniform within 1 / sqrt(fan-in), which counts the channels of all groups.
    pub fn new(p: &mut Params, name: &str, spec: ConvSpec, offsets: Init, trainable: bool) -> Self {
        let ConvSpec { input, output, kernel, stride, groups, bias, .. } = spec;
        // dy, dx and the mask of each tap.
        let taps = kernel * kernel;
        let offset_spec =
            ConvSpec { output: 3 * taps, groups: 1, init: offsets, bias: Some(0.0), ..spec };
        let offset = Conv::new(p, &format!("{name}.conv_offset"), offset_spec, trainable);
        let shape = [output, input / groups, kernel, kernel];
        let init = Init::Uniform(1.0 / ((input * kernel * kernel) as f64).sqrt());
        let weight = p.param(format!("{name}.weight"), &shape, init, trainable, true);
        let bias = bias
            .map(|b| p.param(format!("{name}.bias"), &[output], Init::Const(b), trainable, true));
        Self { offset, weight, bias, stride, groups }
    }

    /// `[B, Cin, H, W]` to `[B, Cout, H', W']` of the same kind. Computed in the parameters' kind:
    /// 8 bits of mantissa are too few for positions in a feature map.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (kind, x) = (x.kind(), &x.to_kind(self.weight.kind()));
        let taps = self.weight.size()[2] * self.weight.size()[3];
        let predicted = self.offset.forward(x);
        let (offset, mask) =
            (predicted.narrow(1, 0, 2 * taps), predicted.narrow(1, 2 * taps, taps).sigmoid());
        let y = deform_conv2d(x, &offset, &mask, &self.weight, self.stride, self.groups);
        let y = match &self.bias {
            Some(bias) => y + bias.view([1, -1, 1, 1]),
            None => y,
        };
        y.to_kind(kind)
    }

    /// Multiply-adds for an input of `size`, and the output's size.
    pub fn cost(&self, size: Size) -> (u64, Size) {
        let (offset, out) = self.offset.cost(size);
        (offset + self.weight.numel() as u64 * (out.0 * out.1) as u64, out)
    }
}

/// Largest number of sampled values in memory at once, 64 MiB in f32. Backward recomputes the
/// samples chunk by chunk, so memory beyond inputs, outputs and their gradients is a few chunks,
/// whatever the image's size.
const CHUNK: i64 = 1 << 24;

/// Deformable convolution like torchvision's `deform_conv2d`, with one offset group, padded to keep
/// the size at stride 1.
///
/// Arguments: `x` `[B, Cin, H, W]`; `offset` `[B, 2 K, H', W']`, in cells of the input, as (dy, dx)
/// for each of the K taps; `mask` `[B, K, H', W']`; `weight` `[Cout, Cin / groups, k, k]`. Returns
/// `[B, Cout, H', W']`. Samples outside the input read zeros, corner by corner.
///
/// # Panics
/// If the shapes do not match, or memory runs out.
pub fn deform_conv2d(
    x: &Tensor,
    offset: &Tensor,
    mask: &Tensor,
    weight: &Tensor,
    stride: i64,
    groups: i64,
) -> Tensor {
    let padding = weight.size()[2] / 2;
    dw_torch::deform_conv2d(x, offset, mask, weight, [stride, padding, groups, CHUNK])
}

/// A plain or a deformable convolution.
#[derive(Debug)]
pub enum AnyConv {
    /// A plain convolution.
    Plain(Conv),
    /// A deformable convolution.
    Deform(DeformConv),
}

impl AnyConv {
    /// `[B, Cin, H, W]` to `[B, Cout, H', W']`, followed by `norm` and `then`; see
    /// [`Conv::normalised`].
    pub fn normalised(&self, x: &Tensor, norm: &Norm, then: Then, train: bool) -> Tensor {
        match self {
            Self::Plain(c) => c.normalised(x, norm, then, train),
            Self::Deform(c) => then.apply(norm.forward(&c.forward(x), train)),
        }
    }

    /// See [`Conv::rounded`]; `None` for a deformable convolution, which does not support it.
    pub fn rounded(&self, kind: Kind) -> Option<Self> {
        match self {
            Self::Plain(c) => Some(Self::Plain(c.rounded(kind))),
            Self::Deform(_) => None,
        }
    }

    /// Multiply-adds for an input of `size`, and the output's size.
    pub fn cost(&self, size: Size) -> (u64, Size) {
        match self {
            Self::Plain(c) => c.cost(size),
            Self::Deform(c) => c.cost(size),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::weights;

    /// Compares values and all gradients with torchvision's operator (`tests/data/deform/make.py`)
    /// for various strides and groups, offsets far outside, and a kernel of one tap; whole and in
    /// chunks of one row.
    #[test]
    fn equals_torchvision() {
        let cases = weights::read(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/deform/cases.safetensors"),
        )
        .unwrap();
        for case in 0..5 {
            let of = |name: &str| cases[&format!("{case}.{name}")].shallow_clone();
            let numbers = Vec::<i64>::try_from(of("stride_groups")).unwrap();
            for (kind, chunk, tolerance) in
                [(Kind::Double, CHUNK, 1e-12), (Kind::Double, 1, 1e-12), (Kind::Float, CHUNK, 1e-4)]
            {
                let names = ["x", "offset", "mask", "weight"];
                let leaves = names.map(|n| of(n).copy().to_kind(kind).set_requires_grad(true));
                let [x, offset, mask, weight] = &leaves;
                let padding = weight.size()[2] / 2;
                let y = dw_torch::deform_conv2d(
                    x,
                    offset,
                    mask,
                    weight,
                    [numbers[0], padding, numbers[1], chunk],
                );
                (&y * of("r").to_kind(kind)).sum(kind).backward();
                let close = |what: &str, found: &Tensor, expected: &Tensor| {
                    let off =
                        (found.to_kind(Kind::Double) - expected).abs().max().double_value(&[]);
                    let scale = expected.abs().max().double_value(&[]).max(1.0);
                    assert!(
                        off <= tolerance * scale,
                        "case {case}, {kind:?}, chunk {chunk}: {what} is off by {off:e}"
                    );
                };
                close("output", &y.detach(), &of("y"));
                for (name, leaf) in names.iter().zip(&leaves) {
                    close(name, &leaf.grad(), &of(&format!("grad.{name}")));
                }
            }
        }
    }

    /// Also checks that frozen weights get no gradient.
    #[test]
    fn zero_offsets_and_a_mask_of_one_give_a_plain_convolution() {
        tch::manual_seed(2);
        let options = (Kind::Double, tch::Device::Cpu);
        let x = Tensor::randn([2, 8, 9, 7], options).set_requires_grad(true);
        let weight = Tensor::randn([6, 4, 3, 3], options);
        let y = deform_conv2d(
            &x,
            &Tensor::zeros([2, 18, 5, 4], options),
            &Tensor::ones([2, 9, 5, 4], options),
            &weight,
            2,
            2,
        );
        let plain = x.conv2d::<Tensor>(&weight, None, [2, 2], [1, 1], [1, 1], 2);
        assert!(y.allclose(&plain, 0.0, 1e-12, false));
        y.sum(Kind::Double).backward();
        assert!(x.grad().defined() && !weight.grad().defined());
    }
}
