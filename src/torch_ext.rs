//! Safe faces of `torch_ext.cpp`.

use std::ffi::{CStr, c_char, c_int};

use tch::Tensor;

unsafe extern "C" {
    fn dw_set_grad(param: *const torch_sys::C_tensor, grad: *const torch_sys::C_tensor) -> c_int;
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
