//! Group norm, optionally followed by ReLU.

use std::ffi::c_int;
use std::ptr::null;

use dw_base::Result;
use tch::Tensor;

use super::memory::owned;

unsafe extern "C" {
    fn dw_group_norm(
        x: *const torch_sys::C_tensor,
        bias: *const torch_sys::C_tensor,
        gamma: *const torch_sys::C_tensor,
        beta: *const torch_sys::C_tensor,
        groups: i64,
        relu: c_int,
    ) -> *mut torch_sys::C_tensor;
}

/// `relu(group_norm(x + bias))` of `[B, C, H, W]`, in its shape and kind. The output is
/// channels-last on a GPU with the kernels and on a CPU without `bias`, except in f64. `bias`,
/// `gamma` and `beta` are `[C]`, f32 if `x` is bf16.
///
/// # Panics
/// If the shapes do not match, memory runs out, or the device failed.
pub fn group_norm_relu(
    x: &Tensor,
    bias: Option<&Tensor>,
    gamma: &Tensor,
    beta: &Tensor,
    groups: i64,
) -> Tensor {
    f_group_norm_relu(x, bias, gamma, beta, groups).unwrap_or_else(|e| panic!("group norm: {e}"))
}

/// [`group_norm_relu`] with an error instead of a panic.
///
/// # Errors
/// As its panics.
pub fn f_group_norm_relu(
    x: &Tensor,
    bias: Option<&Tensor>,
    gamma: &Tensor,
    beta: &Tensor,
    groups: i64,
) -> Result<Tensor> {
    call(x, bias, (gamma, beta), groups, true)
}

/// `group_norm(x)` of `[B, C, H, W]`, in its shape and kind; on a CPU channels-last, except in f64.
/// `gamma` and `beta` are `[C]`, f32 if `x` is bf16.
///
/// # Panics
/// If the shapes do not match, memory runs out, or the device failed.
pub fn group_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, groups: i64) -> Tensor {
    call(x, None, (gamma, beta), groups, false).unwrap_or_else(|e| panic!("group norm: {e}"))
}

fn call(
    x: &Tensor,
    bias: Option<&Tensor>,
    (gamma, beta): (&Tensor, &Tensor),
    groups: i64,
    relu: bool,
) -> Result<Tensor> {
    let bias = bias.map_or(null(), Tensor::as_ptr);
    let (x, gamma, beta, relu) = (x.as_ptr(), gamma.as_ptr(), beta.as_ptr(), c_int::from(relu));
    // SAFETY: the tensors live through the call; the C++ function throws nothing and returns a new
    // tensor or null.
    owned(unsafe { dw_group_norm(x, bias, gamma, beta, groups, relu) })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    /// x `[2, C, H, W]`, gamma, beta, and a gradient of the output, as f64. x and the gradient are
    /// exactly representable in bf16, so that rounding moves no value across the ReLU.
    fn tensors(channels: i64, (h, w): (i64, i64)) -> [Tensor; 4] {
        tch::manual_seed(3);
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Double, Device::Cpu));
        let rounded = |t: Tensor| t.to_kind(Kind::BFloat16).to_kind(Kind::Double);
        let shape = [2, channels, h, w];
        [
            rounded(random(&shape) * 2.0 + 0.5),
            random(&[channels]) + 1.0,
            random(&[channels]),
            rounded(random(&shape)),
        ]
    }

    /// Output and gradients of x, gamma and beta, of `norm` on tensors of these kinds.
    fn run(
        t: &[Tensor; 4],
        (kind, parameters): (Kind, Kind),
        norm: impl Fn(&Tensor, &Tensor, &Tensor) -> Tensor,
    ) -> Vec<Tensor> {
        let leaf = |t: &Tensor, kind| t.to_kind(kind).detach().copy().set_requires_grad(true);
        let x = leaf(&t[0], kind);
        let (gamma, beta) = (leaf(&t[1], parameters), leaf(&t[2], parameters));
        let y = norm(&x, &gamma, &beta);
        (&y * t[3].to_kind(kind)).sum(Kind::Double).backward();
        [y.detach(), x.grad(), gamma.grad(), beta.grad()].map(|t| t.to_kind(Kind::Double)).into()
    }

    /// Sizes of one chunk and of several, and channels that are not a multiple of a vector's
    /// length.
    const CASES: [(i64, i64, (i64, i64)); 5] =
        [(256, 32, (9, 17)), (64, 16, (30, 20)), (24, 6, (8, 8)), (20, 5, (1, 1)), (8, 1, (13, 5))];

    #[test]
    fn equals_group_norm_and_relu_of_libtorch_in_values_and_all_gradients() {
        for ((channels, groups, size), relu) in
            CASES.into_iter().flat_map(|c| [(c, true), (c, false)])
        {
            let t = tensors(channels, size);
            let expected = run(&t, (Kind::Double, Kind::Double), |x, gamma, beta| {
                let y = x.group_norm(groups, Some(gamma), Some(beta), 1e-5, true);
                if relu { y.relu() } else { y }
            });
            let fused = |kind| {
                run(&t, (kind, Kind::Float), |x, gamma, beta| {
                    if relu {
                        group_norm_relu(x, None, gamma, beta, groups)
                    } else {
                        group_norm(x, gamma, beta, groups)
                    }
                })
            };
            let names = ["output", "dx", "dgamma", "dbeta"];
            for (kind, limit) in [(Kind::Float, 2e-6), (Kind::BFloat16, 5e-3)] {
                for ((name, e), f) in names.iter().zip(&expected).zip(fused(kind)) {
                    // The gradient of a group with few elements is close to 0.
                    let off = ((f - e).norm() / (e.norm() + 1e-3)).double_value(&[]);
                    assert!(off < limit, "{kind:?}, {channels} x {size:?}, {name}: {off}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "parameters of 6 and 8, expected 8 channels")]
    fn parameters_of_other_channels_are_refused() {
        let [x, gamma, beta, _] = tensors(8, (4, 4)).map(|t| t.to_kind(Kind::Float));
        let _ = group_norm_relu(&x, None, &gamma.narrow(0, 0, 6), &beta, 2);
    }

    #[test]
    fn not_a_number_stays_so() {
        let [x, gamma, beta, _] = tensors(8, (4, 4)).map(|t| t.to_kind(Kind::Float));
        let _ = x.get(0).get(0).get(0).get(0).fill_(f64::NAN);
        let y = group_norm_relu(&x, None, &gamma, &beta, 2);
        // Only the first group of the first image contains NaN.
        let count = |t: Tensor| t.isnan().sum(Kind::Int64).int64_value(&[]);
        assert_eq!((count(y.get(0).narrow(0, 0, 4)), count(y)), (64, 64));
    }
}
