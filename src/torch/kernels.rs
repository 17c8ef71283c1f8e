//! The program's own CUDA kernels, as the C++ files of this folder use them.

use std::ffi::{c_int, c_void};
use std::ptr::{null, null_mut};

unsafe extern "C" {
    fn dw_set_kernels(functions: *const *mut c_void, launcher: *mut c_void);
    fn dw_has_kernels() -> c_int;
}

/// Number of kernels.
pub const NUM_KERNELS: usize = 14;

/// Sets the kernels and the driver's `cuLaunchKernel`; `None`: operations of libtorch are used
/// instead. Must not be called while another thread uses them.
///
/// # Safety
/// The functions are those of `src/device/kernels`, in the order of `src/torch/kernels.h`, of a
/// module that stays loaded.
pub unsafe fn set_kernels(kernels: Option<([*mut c_void; NUM_KERNELS], *mut c_void)>) {
    match kernels {
        // SAFETY: guaranteed by the caller; the array lives through the call.
        Some((functions, launch)) => unsafe { dw_set_kernels(functions.as_ptr(), launch) },
        // SAFETY: switches the kernels off; the array is not read.
        None => unsafe { dw_set_kernels(null(), null_mut()) },
    }
}

/// Whether the kernels are used on GPUs.
pub fn has_kernels() -> bool {
    // SAFETY: reads a flag; no preconditions.
    unsafe { dw_has_kernels() != 0 }
}
