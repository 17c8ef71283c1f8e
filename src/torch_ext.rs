//! Safe faces of `torch_ext.cpp`.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::NonNull;

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
    fn dw_on_gradient(
        param: *const torch_sys::C_tensor,
        call: unsafe extern "C" fn(*mut c_void),
        context: *mut c_void,
        drop: unsafe extern "C" fn(*mut c_void),
    ) -> *mut c_void;
    fn dw_forget_gradient(hook: *mut c_void);
    fn dw_side_stream(index: i64) -> *mut c_void;
    fn dw_side_drop(side: *mut c_void);
    fn dw_side_handle(side: *const c_void) -> *mut c_void;
    fn dw_side_order(side: *const c_void, side_waits: c_int) -> c_int;
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

type Callback = Box<dyn Fn() + Send + Sync>;

/// A callback after a parameter's gradient; ends with this value.
#[derive(Debug)]
pub struct GradientHook(NonNull<c_void>);

// SAFETY: a reference-counted handle of libtorch, whose counts are atomic; dropping it is all that is done with it.
unsafe impl Send for GradientHook {}

/// Calls `callback` once in every backward, after the gradient of `param` is in its buffer: also for a weight that is used
/// several times. On CUDA the gradient is then enqueued, and the caller is a thread of libtorch's.
///
/// # Panics
/// When `param` does not require a gradient.
pub fn on_gradient(param: &Tensor, callback: impl Fn() + Send + Sync + 'static) -> GradientHook {
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
    let hook = unsafe { dw_on_gradient(param.as_ptr(), call, Box::into_raw(callback).cast(), drop) };
    let hook = NonNull::new(hook);
    assert!(hook.is_some(), "gradient hook: {}", last_error());
    GradientHook(hook.unwrap_or(NonNull::dangling()))
}

impl Drop for GradientHook {
    fn drop(&mut self) {
        // SAFETY: made by `dw_on_gradient`, given back once.
        unsafe { dw_forget_gradient(self.0.as_ptr()) }
    }
}

/// A high-priority stream of a CUDA device for communication.
#[derive(Debug)]
pub struct CudaSide(NonNull<c_void>);

// SAFETY: stream handles and events of libtorch may be used from any thread.
unsafe impl Send for CudaSide {}
// SAFETY: as above; nothing in it changes.
unsafe impl Sync for CudaSide {}

impl CudaSide {
    /// Takes a stream of device `index` from libtorch's pool.
    ///
    /// # Errors
    /// No such device.
    pub fn new(index: usize) -> Result<Self, String> {
        // SAFETY: no preconditions; null on failure.
        NonNull::new(unsafe { dw_side_stream(index as i64) }).map(Self).ok_or_else(last_error)
    }

    fn order(&self, side_waits: bool) {
        // SAFETY: a live stream.
        let code = unsafe { dw_side_order(self.0.as_ptr(), c_int::from(side_waits)) };
        assert_eq!(code, 0, "libtorch cannot order two CUDA streams");
    }
}

impl Drop for CudaSide {
    fn drop(&mut self) {
        // SAFETY: made by `dw_side_stream`, given back once.
        unsafe { dw_side_drop(self.0.as_ptr()) }
    }
}

impl dw_launch::nccl::SideStream for CudaSide {
    fn handle(&self) -> *mut c_void {
        // SAFETY: a live stream.
        unsafe { dw_side_handle(self.0.as_ptr()) }
    }

    fn after_compute(&self) {
        self.order(true);
    }

    fn before_compute(&self) {
        self.order(false);
    }
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
