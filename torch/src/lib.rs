//! Functions of libtorch that the `tch` bindings lack: one subject per file, next to its C++
//! source.
//!
//! C++ exceptions do not cross into Rust: the C++ functions return a status (or null) and store the
//! exception, which is returned as an [`Error`](dw_base::Error).

mod conv;
mod deform;
mod dw_loss;
mod error;
mod gradient;
mod group_norm;
mod kernels;
mod memory;
mod norm;
mod profile;
mod readback;
mod sgd;
mod stream;

use std::ffi::{CStr, c_char, c_int};

use dw_base::Result;

use error::check;

pub use conv::{Convolution, convolution, f_convolution};
pub use deform::deform_conv2d;
pub use dw_loss::{DwLoss, dw_loss, has_dw_loss, use_loss_kernels};
pub use error::error;
pub use gradient::{GradientHook, on_gradient, set_grad};
pub use group_norm::{f_group_norm_relu, group_norm, group_norm_relu};
pub use kernels::{Kernels, NUM_KERNELS, has_kernels, set_kernels};
pub use memory::{host_bytes, page_locked, peak_bytes, reset_peak_bytes, to_host, upload};
pub use norm::norm;
pub use profile::{Profile, count_syncs};
pub use readback::Readback;
pub use sgd::fused_sgd;
pub use stream::Stream;

unsafe extern "C" {
    fn dw_torch_version() -> *const c_char;
    fn dw_flush_denormals();
    fn dw_allow_tf32_convolutions(allow: c_int) -> c_int;
    fn dw_deterministic(on: c_int) -> c_int;
    fn dw_has_cuda_hooks() -> c_int;
    fn dw_cpu_has(instructions: *const c_char) -> c_int;
}

/// Version of libtorch, such as "2.11.0+cu130".
pub fn version() -> String {
    // SAFETY: a static string literal.
    unsafe { CStr::from_ptr(dw_torch_version()) }.to_string_lossy().into_owned()
}

/// Flushes denormal numbers to zero, on this thread and on the threads libtorch starts from it.
pub fn flush_denormals() {
    // SAFETY: sets a CPU flag; no preconditions.
    unsafe { dw_flush_denormals() }
}

/// Sets whether f32 convolutions on a GPU round their inputs to TF32 (10 bits of mantissa), which
/// is libtorch's default. Matrix products use IEEE f32 in both cases.
///
/// # Errors
/// libtorch rejects the setting: the process also set a precision through its newer interface.
pub fn allow_tf32_convolutions(allow: bool) -> Result<()> {
    // SAFETY: sets a flag of libtorch; no preconditions.
    check(unsafe { dw_allow_tf32_convolutions(c_int::from(allow)) })
}

/// Selects deterministic algorithms where libtorch has them. An operation without one still runs,
/// and libtorch warns about it on standard error.
///
/// # Errors
/// libtorch rejects the setting.
pub fn deterministic(on: bool) -> Result<()> {
    // SAFETY: sets flags of libtorch; no preconditions.
    check(unsafe { dw_deterministic(c_int::from(on)) })
}

/// Whether libtorch has found its CUDA library. It looks once per process, at the first use: a
/// library loaded later is never found.
pub fn has_cuda_hooks() -> bool {
    // SAFETY: no preconditions.
    unsafe { dw_has_cuda_hooks() != 0 }
}

/// Whether this machine's CPU has an instruction set, by libtorch's name for it, such as
/// `avx512_bf16`.
pub fn cpu_has(instructions: &CStr) -> bool {
    // SAFETY: a C string that lives through the call.
    unsafe { dw_cpu_has(instructions.as_ptr()) != 0 }
}
