//! Compares the custom kernels with libtorch's operations on a small input.

use dw_torch::{Convolution, f_convolution, f_group_norm_relu};
use tch::{Device, Kind, Tensor};

use crate::Result;

/// A function of five tensors: input, three parameters of the channels, and a weight.
type Function = fn(&[Tensor; 5]) -> Result<Tensor>;

/// An operation that is compared.
struct Case {
    name: &'static str,
    function: Function,
    /// Largest difference relative to the norm of a result. TF32 in convolutions has 10 bits of
    /// mantissa, and each value that rounding moves across a ReLU changes a gradient.
    in_f32: f64,
    in_bf16: f64,
}

const CASES: [Case; 5] = [
    Case {
        name: "group norm",
        function: |[x, bias, gamma, beta, _]| f_group_norm_relu(x, Some(bias), gamma, beta, 8),
        in_f32: 1e-4,
        in_bf16: 5e-2,
    },
    Case {
        name: "convolution",
        function: |t| convolution(t, false, false),
        in_f32: 5e-3,
        in_bf16: 5e-2,
    },
    Case {
        name: "convolution and ReLU",
        function: |t| convolution(t, false, true),
        in_f32: 2e-2,
        in_bf16: 5e-2,
    },
    Case {
        name: "convolution and batch norm",
        function: |t| convolution(t, true, false),
        in_f32: 5e-3,
        in_bf16: 5e-2,
    },
    Case {
        name: "convolution, batch norm and ReLU",
        function: |t| convolution(t, true, true),
        in_f32: 4e-2,
        in_bf16: 1e-1,
    },
];

/// A padded convolution of the first tensor by the last, with the second as bias or beta. The norm
/// has the third as gamma; its statistics come from the fourth.
fn convolution(
    [x, beta, gamma, other, weight]: &[Tensor; 5],
    norm: bool,
    relu: bool,
) -> Result<Tensor> {
    let mean = other.detach();
    let var = mean.square() + 0.5;
    f_convolution(
        x,
        &Convolution {
            weight,
            bias: Some(beta),
            norm: norm.then_some([gamma, &mean, &var]),
            residual: None,
            rounded: None,
            stride: 1,
            padding: 1,
            groups: 1,
            relu,
        },
    )
}

/// Output and gradients of `function`, in f64; 0 for an input that it does not use. The last input
/// is the gradient of the output. With `buffers`, the gradients of the parameters are added to
/// buffers, as in training, which hold 1 initially.
fn outputs(inputs: &[Tensor; 6], function: Function, buffers: bool) -> Result<Vec<Tensor>> {
    let has_buffer = |i: usize| buffers && i > 0;
    let leaf = |i: usize| {
        let leaf = inputs[i].detach().copy().set_requires_grad(true);
        if has_buffer(i) {
            dw_torch::set_grad(&leaf, &leaf.detach().ones_like()).expect("a gradient of its shape");
        }
        leaf
    };
    let leaves: [Tensor; 5] = std::array::from_fn(leaf);
    let y = function(&leaves)?;
    (&y * &inputs[5]).sum(None).f_backward().map_err(dw_torch::error)?;
    let gradient = |(i, leaf): (usize, &Tensor)| match leaf.grad() {
        grad if !grad.defined() => leaf.zeros_like(),
        grad if has_buffer(i) => grad.to_kind(Kind::Double) - 1.0,
        grad => grad,
    };
    let gradients = leaves.iter().enumerate().map(gradient);
    Ok(std::iter::once(y.detach()).chain(gradients).map(|t| t.to_kind(Kind::Double)).collect())
}

/// Compares the kernels with libtorch's operations in f64, on random inputs.
///
/// # Errors
/// What differs, and by how much, or that a kernel cannot be started.
pub fn check(device: Device) -> std::result::Result<(), String> {
    for case in &CASES {
        for (channels, kind, tolerance) in [
            (32, Kind::Float, case.in_f32),
            (256, Kind::Float, case.in_f32),
            (256, Kind::BFloat16, case.in_bf16),
        ] {
            let inputs = inputs(device, channels, kind);
            let what = || format!("{} of {channels} channels in {kind:?}", case.name);
            let off =
                differences(&inputs, case.function).map_err(|e| format!("{}: {e}", what()))?;
            let wrong = off.iter().find(|(_, off)| off.is_nan() || *off > tolerance);
            if let Some((result, off)) = wrong {
                return Err(format!(
                    "{}: {result} differs from libtorch's by {off:.1e} of the norm",
                    what()
                ));
            }
        }
    }
    Ok(())
}

/// By how much each result differs from that in f64, without and with buffers for gradients.
fn differences(inputs: &[Tensor; 6], function: Function) -> Result<Vec<(String, f64)>> {
    let in_f64 = inputs.each_ref().map(|t| t.to_kind(Kind::Double));
    let expected = outputs(&in_f64, function, false)?;
    let mut off = vec![];
    for buffers in [false, true] {
        let found = outputs(inputs, function, buffers)?;
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let name = format!("result {i} (gradients in buffers: {buffers})");
            off.push((name, relative_difference(found, expected)));
        }
    }
    Ok(off)
}

/// Norm of the difference of two tensors, relative to that of `expected` unless that is 0; NaN if
/// either tensor contains NaN.
pub fn relative_difference(found: &Tensor, expected: &Tensor) -> f64 {
    let norm = |t: &Tensor| f64::try_from(t.norm()).unwrap_or(f64::NAN);
    match norm(expected) {
        0.0 => norm(found),
        of_expected => norm(&(found - expected)) / of_expected,
    }
}

/// Random inputs of a [`Function`], and a gradient of its output.
fn inputs(device: Device, channels: i64, kind: Kind) -> [Tensor; 6] {
    // Parameters that bf16 represents exactly: rounding them would move values across the ReLU.
    let normal = |shape: &[i64]| {
        Tensor::randn(shape, (Kind::Float, device)).to_kind(kind).to_kind(Kind::Float)
    };
    let channels_last = |t: Tensor| t.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
    let map = || channels_last(normal(&[3, channels, 13, 17])).to_kind(kind);
    [
        map(),
        normal(&[channels]),
        normal(&[channels]),
        normal(&[channels]),
        channels_last(normal(&[channels, channels, 3, 3])) * 0.0625,
        map(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a GPU both sides of the comparison are libtorch's operations, in two precisions.
    #[test]
    fn the_check_accepts_what_is_right() {
        assert_eq!(check(Device::Cpu), Ok(()));
    }
}
