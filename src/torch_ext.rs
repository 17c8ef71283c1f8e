//! Safe faces of `torch_ext.cpp`.

use std::ffi::{CStr, c_char, c_int};

use tch::Tensor;

unsafe extern "C" {
    fn dw_set_grad(param: *const torch_sys::C_tensor, grad: *const torch_sys::C_tensor) -> c_int;
    fn dw_fused_sgd(
        param: *const torch_sys::C_tensor,
        grad: *const torch_sys::C_tensor,
        velocity: *const torch_sys::C_tensor,
        weight_decay: f64,
        momentum: f64,
        lr: f64,
    ) -> c_int;
    fn dw_deform_conv2d(
        input: *const torch_sys::C_tensor,
        offset: *const torch_sys::C_tensor,
        mask: *const torch_sys::C_tensor,
        weight: *const torch_sys::C_tensor,
        stride: i64,
        padding: i64,
        groups: i64,
        chunk: i64,
    ) -> *mut torch_sys::C_tensor;
    fn dw_last_error() -> *const c_char;
    fn dw_torch_version() -> *const c_char;
    fn dw_flush_denormals();
}

/// Makes `grad` the tensor that backward accumulates `param`'s gradient into.
///
/// # Panics
/// When the shapes differ.
pub fn set_grad(param: &Tensor, grad: &Tensor) {
    assert_eq!(param.size(), grad.size(), "gradient of another shape");
    // SAFETY: both pointers are live tensors for the whole call; the C++ side copies the handle.
    let code = unsafe { dw_set_grad(param.as_ptr(), grad.as_ptr()) };
    assert_eq!(code, 0, "libtorch refused a gradient buffer");
}

/// SGD in one pass over flat buffers of one shape, in place: v <- m v + (g + wd p); p <- p - lr v.
///
/// # Panics
/// When the shapes differ.
pub fn fused_sgd(param: &mut Tensor, grad: &Tensor, velocity: &mut Tensor, weight_decay: f64, momentum: f64, lr: f64) {
    assert!(param.size() == grad.size() && param.size() == velocity.size(), "buffers of different shapes");
    // SAFETY: three live tensors of one shape for the whole call; the two that change are borrowed mutably.
    let code = unsafe { dw_fused_sgd(param.as_ptr(), grad.as_ptr(), velocity.as_ptr(), weight_decay, momentum, lr) };
    assert_eq!(code, 0, "libtorch refused the SGD step");
}

/// Modulated deformable convolution with bounded memory; see [`crate::model::deform::deform_conv2d`] for the shapes.
/// `[stride, padding, groups, chunk]`: `chunk` bounds the numbers of the sampled columns that exist at once.
///
/// # Panics
/// When the shapes do not fit, or memory runs out.
pub fn deform_conv2d(x: &Tensor, offset: &Tensor, mask: &Tensor, weight: &Tensor, [stride, padding, groups, chunk]: [i64; 4]) -> Tensor {
    // SAFETY: four live tensors for the whole call; the C++ side throws nothing and returns a new tensor or null.
    let out = unsafe { dw_deform_conv2d(x.as_ptr(), offset.as_ptr(), mask.as_ptr(), weight.as_ptr(), stride, padding, groups, chunk) };
    assert!(!out.is_null(), "deformable convolution: {}", last_error());
    // SAFETY: a tensor that the C++ side made for us; we own it from here.
    unsafe { Tensor::from_ptr(out) }
}

fn last_error() -> String {
    // SAFETY: a text that lives until this thread's next failing call.
    unsafe { CStr::from_ptr(dw_last_error()) }.to_string_lossy().into_owned()
}

/// Version of libtorch, as "2.11.0+cu130".
pub fn version() -> String {
    // SAFETY: a static string literal.
    unsafe { CStr::from_ptr(dw_torch_version()) }.to_string_lossy().into_owned()
}

/// Treats denormal numbers as zero on this thread and those that libtorch starts from it.
pub fn flush_denormals() {
    // SAFETY: sets a CPU flag; no preconditions.
    unsafe { dw_flush_denormals() }
}
