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
    /// Largest difference relative to the norm of a result.
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
        in_f32: 1e-3,
        in_bf16: 5e-2,
    },
    Case {
        name: "convolution and ReLU",
        function: |t| convolution(t, false, true),
        in_f32: 1e-3,
        in_bf16: 5e-2,
    },
    Case {
        name: "convolution and batch norm",
        function: |t| convolution(t, true, false),
        in_f32: 1e-3,
        in_bf16: 5e-2,
    },
    Case {
        name: "convolution, batch norm and ReLU",
        function: |t| convolution(t, true, true),
        in_f32: 1e-3,
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
    // Deviations of 0.5, 1 and 2.
    let var = (mean.sign() * 2).exp2();
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

/// Compares the kernels with libtorch's operations in f64.
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

/// Inputs of a [`Function`], and a gradient of its output: the same in every process, and the same
/// global random numbers for a run whether or not it uses the kernels.
///
/// A value that rounding moves across a ReLU changes gradients by more than the tolerance. The
/// numbers are therefore few-bit multiples of powers of two, which bf16 and TF32 represent exactly,
/// and the bias an odd multiple of a smaller one: the input of the ReLU after a convolution is
/// computed without rounding, except for the epsilon of the norm, and is at least 1/512 away from
/// 0.
fn inputs(device: Device, channels: i64, kind: Kind) -> [Tensor; 6] {
    // Multiples of 1 / `steps` from -1 to 1.
    let multiples = |shape: &[i64], steps: f64, seed| (noise(shape, seed) * steps).round() / steps;
    let there = |t: Tensor| t.to_kind(kind).to_device(device);
    let parameter = |t: Tensor| t.to_kind(Kind::Float).to_device(device);
    let channels_last = |t: Tensor| t.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
    let map = |seed| there(channels_last(multiples(&[3, channels, 13, 17], 4.0, seed)));
    let signs = multiples(&[channels], 1.0, 3) * 2 + 0.5;
    [
        map(1),
        parameter((multiples(&[channels], 63.0, 2) * 126 + 1) / 512),
        parameter(signs.sign() * (noise(&[channels], 4).sign() * 0.25 + 0.75)),
        parameter(multiples(&[channels], 16.0, 5)),
        parameter(channels_last(multiples(&[channels, channels, 3, 3], 1.0, 6)) * 0.0625),
        map(7),
    ]
}

/// Pseudo-random f64 numbers from -1 to 1, the same in every run. The global random number
/// generator is not used, so that a run's random numbers do not depend on whether the kernels are
/// loaded.
pub fn noise(shape: &[i64], seed: i64) -> Tensor {
    let count: i64 = shape.iter().product();
    let at = Tensor::arange(count, (Kind::Double, Device::Cpu)) + seed as f64 * 1e5;
    ((at * 12.9898).sin() * 43758.5453).frac().view(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a GPU both sides of the comparison are libtorch's operations, in two precisions.
    #[test]
    fn the_check_accepts_what_is_right() {
        assert_eq!(check(Device::Cpu), Ok(()));
    }

    /// A value near 0 could have either sign after rounding, and the check would fail for correct
    /// kernels on some machines.
    #[test]
    fn no_value_of_the_check_is_near_the_threshold_of_a_relu() {
        for (channels, kind) in
            [(32, Kind::Float), (256, Kind::Float), (32, Kind::BFloat16), (256, Kind::BFloat16)]
        {
            let t = inputs(Device::Cpu, channels, kind).map(|t| t.to_kind(Kind::Double));
            let [x, bias, gamma, beta, weight, _] = &t;
            let smallest = |t: &Tensor| t.abs().min().double_value(&[]);
            let shifted = x + bias.view([1, -1, 1, 1]);
            let group_norm = shifted.group_norm(8, Some(gamma), Some(beta), 1e-5, false);
            assert!(smallest(&group_norm) > 1e-5, "{}", smallest(&group_norm));
            for norm in [false, true] {
                let t = [x, bias, gamma, beta, weight].map(Tensor::shallow_clone);
                let y = convolution(&t, norm, false).unwrap();
                assert!(smallest(&y) > 1e-3, "norm {norm}: {}", smallest(&y));
            }
        }
    }
}
