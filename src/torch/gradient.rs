//! Gradient buffers, and callbacks while backward runs.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

use tch::Tensor;

use super::{Result, check, last_error};

unsafe extern "C" {
    fn dw_set_grad(param: *const torch_sys::C_tensor, grad: *const torch_sys::C_tensor) -> c_int;
    fn dw_on_gradient(
        param: *const torch_sys::C_tensor,
        call: unsafe extern "C" fn(*mut c_void),
        context: *mut c_void,
        drop: unsafe extern "C" fn(*mut c_void),
    ) -> *mut c_void;
    fn dw_forget_gradient(hook: *mut c_void);
}

/// Makes `grad` the tensor that backward accumulates `param`'s gradient into.
///
/// # Errors
/// libtorch refuses the tensor.
///
/// # Panics
/// When the shapes differ.
pub fn set_grad(param: &Tensor, grad: &Tensor) -> Result<()> {
    assert_eq!(param.size(), grad.size(), "gradient of another shape");
    // SAFETY: both pointers are live tensors for the whole call; the C++ side copies the handle.
    check(unsafe { dw_set_grad(param.as_ptr(), grad.as_ptr()) })
}

type Callback = Box<dyn Fn() + Send + Sync>;

/// A callback after a parameter's gradient; ends with this value.
#[derive(Debug)]
pub struct GradientHook(NonNull<c_void>);

// SAFETY: a reference-counted handle of libtorch, whose counts are atomic; dropping it is all that is done with it.
unsafe impl Send for GradientHook {}

/// Calls `callback` once in every backward, after the gradient of `param` is in its buffer: also for a
/// weight that is used several times. On CUDA the gradient is then enqueued, and the caller is a thread of libtorch's.
///
/// # Errors
/// `param` does not require a gradient.
pub fn on_gradient(
    param: &Tensor,
    callback: impl Fn() + Send + Sync + 'static,
) -> Result<GradientHook> {
    unsafe extern "C" fn call(context: *mut c_void) {
        // SAFETY: the pointer made below, not dropped before the last call.
        unsafe { (*context.cast::<Callback>())() }
    }
    unsafe extern "C" fn drop(context: *mut c_void) {
        // SAFETY: the pointer made below, given back once.
        std::mem::drop(unsafe { Box::from_raw(context.cast::<Callback>()) });
    }
    let callback: Box<Callback> = Box::new(Box::new(callback));
    // SAFETY: a live tensor; the C++ side owns the callback from here, also when it fails.
    let hook =
        unsafe { dw_on_gradient(param.as_ptr(), call, Box::into_raw(callback).cast(), drop) };
    NonNull::new(hook).map(GradientHook).ok_or_else(last_error)
}

impl Drop for GradientHook {
    fn drop(&mut self) {
        // SAFETY: made by `dw_on_gradient`, given back once.
        unsafe { dw_forget_gradient(self.0.as_ptr()) }
    }
}
