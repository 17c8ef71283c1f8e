//! Gradient buffers, and callbacks during the backward pass.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

use dw_base::Result;
use tch::Tensor;

use super::error::{check, last_error};

unsafe extern "C" {
    fn dw_set_grad(param: *const torch_sys::C_tensor, grad: *const torch_sys::C_tensor) -> c_int;
    fn dw_add_gradient_hook(
        param: *const torch_sys::C_tensor,
        call: unsafe extern "C" fn(*mut c_void),
        context: *mut c_void,
        drop: unsafe extern "C" fn(*mut c_void),
    ) -> *mut c_void;
    fn dw_remove_gradient_hook(hook: *mut c_void);
}

/// Makes `grad` the tensor that backward accumulates `param`'s gradient into.
///
/// # Errors
/// libtorch rejects the tensor.
///
/// # Panics
/// If the shapes differ.
pub fn set_grad(param: &Tensor, grad: &Tensor) -> Result<()> {
    assert_eq!(param.size(), grad.size(), "gradient and parameter have different shapes");
    // SAFETY: both tensors live through the call; the C++ function copies the handle.
    check(unsafe { dw_set_grad(param.as_ptr(), grad.as_ptr()) })
}

type Callback = Box<dyn Fn() + Send + Sync>;

/// Handle of a callback registered with [`on_gradient`]; dropping it removes the callback.
#[derive(Debug)]
pub struct GradientHook(NonNull<c_void>);

// SAFETY: a handle with an atomic reference count, which is only dropped.
unsafe impl Send for GradientHook {}

/// Calls `callback` once in every backward pass, after the gradient of `param` has been accumulated
/// into its buffer, however often the parameter is used in the graph.
///
/// The callback may run on a thread of libtorch. On CUDA the accumulation has been enqueued by
/// then, but need not have finished.
///
/// # Errors
/// `param` is not a leaf that requires a gradient.
pub fn on_gradient(
    param: &Tensor,
    callback: impl Fn() + Send + Sync + 'static,
) -> Result<GradientHook> {
    unsafe extern "C" fn call(context: *mut c_void) {
        // SAFETY: the pointer of `Box::into_raw` below, which is dropped after the last call.
        unsafe { (*context.cast::<Callback>())() }
    }
    unsafe extern "C" fn drop(context: *mut c_void) {
        // SAFETY: the pointer of `Box::into_raw` below; called once.
        std::mem::drop(unsafe { Box::from_raw(context.cast::<Callback>()) });
    }
    let callback: Box<Callback> = Box::new(Box::new(callback));
    // SAFETY: the tensor lives through the call; the C++ side owns the callback from here on, also
    // when the call fails.
    let hook =
        unsafe { dw_add_gradient_hook(param.as_ptr(), call, Box::into_raw(callback).cast(), drop) };
    NonNull::new(hook).map(GradientHook).ok_or_else(last_error)
}

impl Drop for GradientHook {
    fn drop(&mut self) {
        // SAFETY: the handle came from `dw_add_gradient_hook` and is released once.
        unsafe { dw_remove_gradient_hook(self.0.as_ptr()) }
    }
}
