//! Group norm followed by ReLU, for GPUs.

use std::ptr::null;

use tch::Tensor;

use super::memory::owned;

unsafe extern "C" {
    fn dw_group_norm_relu(
        x: *const torch_sys::C_tensor,
        bias: *const torch_sys::C_tensor,
        gamma: *const torch_sys::C_tensor,
        beta: *const torch_sys::C_tensor,
        groups: i64,
    ) -> *mut torch_sys::C_tensor;
}

/// `relu(group_norm(x + bias))` of `[B, C, H, W]`, in its shape and kind and, with the kernels,
/// channels-last. `bias`, `gamma` and `beta` are `[C]`, f32 if `x` is bf16.
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
    let bias = bias.map_or(null(), Tensor::as_ptr);
    // SAFETY: the tensors live through the call; the C++ function throws nothing and returns a new
    // tensor or null.
    let out =
        unsafe { dw_group_norm_relu(x.as_ptr(), bias, gamma.as_ptr(), beta.as_ptr(), groups) };
    match owned(out) {
        Ok(out) => out,
        Err(e) => panic!("group norm: {e}"),
    }
}
