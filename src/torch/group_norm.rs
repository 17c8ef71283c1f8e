//! Group norm followed by ReLU, for GPUs.

use std::ffi::{c_int, c_void};
use std::ptr::null;

use tch::Tensor;

use super::memory::owned;

unsafe extern "C" {
    fn dw_group_norm_kernels(functions: *const *mut c_void, launcher: *mut c_void);
    fn dw_has_group_norm_kernels() -> c_int;
    fn dw_group_norm_relu(
        x: *const torch_sys::C_tensor,
        bias: *const torch_sys::C_tensor,
        gamma: *const torch_sys::C_tensor,
        beta: *const torch_sys::C_tensor,
        groups: i64,
    ) -> *mut torch_sys::C_tensor;
}

/// Number of kernels.
pub const NUM_KERNELS: usize = 10;

/// Sets the kernels that [`group_norm_relu`] uses, and the driver's `cuLaunchKernel`; `None`:
/// operations of libtorch. Must not be called while another thread uses them.
///
/// # Safety
/// The functions are those of `src/device/kernels/group_norm.cu`, in the order of
/// `src/torch/group_norm.cpp`, of a module that stays loaded.
pub unsafe fn set_group_norm_kernels(kernels: Option<([*mut c_void; NUM_KERNELS], *mut c_void)>) {
    match kernels {
        // SAFETY: guaranteed by the caller; the array lives through the call.
        Some((functions, launch)) => unsafe { dw_group_norm_kernels(functions.as_ptr(), launch) },
        // SAFETY: switches the kernels off; the array is not read.
        None => unsafe { dw_group_norm_kernels(null(), std::ptr::null_mut()) },
    }
}

/// Whether [`group_norm_relu`] uses the kernels on GPUs.
pub fn has_group_norm_kernels() -> bool {
    // SAFETY: reads a flag; no preconditions.
    unsafe { dw_has_group_norm_kernels() != 0 }
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
