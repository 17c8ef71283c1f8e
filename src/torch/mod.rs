//! What the libtorch bindings (`tch`) lack, one subject a file, each beside its C++ source.
//!
//! No exception leaves the C++ side: its functions return a status and keep the exception's text, which
//! comes back as a [`TchError`].

mod deform;
mod gradient;
mod memory;
mod profile;
mod sgd;
mod stream;

use std::ffi::{CStr, c_char, c_int};

use tch::TchError;

pub use deform::deform_conv2d;
pub use gradient::{GradientHook, on_gradient, set_grad};
pub use memory::{host_floats, peak_bytes, reset_peak_bytes, to_host};
pub use profile::{Profile, count_syncs};
pub use sgd::fused_sgd;
pub use stream::CudaSide;

unsafe extern "C" {
    fn dw_last_error() -> *const c_char;
    fn dw_torch_version() -> *const c_char;
    fn dw_flush_denormals();
    fn dw_allow_tf32_convolutions(allow: c_int) -> c_int;
    fn dw_deterministic(on: c_int) -> c_int;
    fn dw_sees_cuda() -> c_int;
}

/// Result of a call into libtorch.
pub type Result<T> = std::result::Result<T, TchError>;

/// The text of the exception that the last failing call on this thread ended with.
fn last_error() -> TchError {
    // SAFETY: a text that lives until this thread's next failing call.
    let text = unsafe { CStr::from_ptr(dw_last_error()) };
    TchError::Torch(text.to_string_lossy().into_owned())
}

/// Turns a status of the C++ side (0: success) into a result.
fn check(status: c_int) -> Result<()> {
    if status == 0 { Ok(()) } else { Err(last_error()) }
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

/// Whether f32 convolutions on a GPU may round their inputs to TF32 (10 bits of mantissa). libtorch's own
/// default is yes. Matrix products stay in IEEE f32 either way.
///
/// # Errors
/// libtorch refuses, because something else in the process chose a precision through its newer interface.
pub fn allow_tf32_convolutions(allow: bool) -> Result<()> {
    // SAFETY: sets a flag of libtorch; no preconditions.
    check(unsafe { dw_allow_tf32_convolutions(c_int::from(allow)) })
}

/// Makes libtorch use deterministic algorithms wherever it has one; where it has none it goes on and
/// warns on standard error.
///
/// # Errors
/// libtorch refuses.
pub fn deterministic(on: bool) -> Result<()> {
    // SAFETY: sets flags of libtorch; no preconditions.
    check(unsafe { dw_deterministic(c_int::from(on)) })
}

/// Whether libtorch has found its CUDA half. It looks once in a process: if that was not loaded before the
/// first look, the answer stays no.
pub fn sees_cuda() -> bool {
    // SAFETY: no preconditions.
    unsafe { dw_sees_cuda() != 0 }
}
