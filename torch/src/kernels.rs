//! Custom CUDA kernels, as the C++ files of this folder use them.

use std::ffi::{c_int, c_void};
use std::ptr::{null, null_mut};

unsafe extern "C" {
    fn dw_set_kernels(
        functions: *const *mut c_void,
        launcher: *mut c_void,
        describe: *mut c_void,
        on_cpu: c_int,
    );
    fn dw_has_kernels() -> c_int;
}

/// Number of kernels.
pub const NUM_KERNELS: usize = 26;

/// The kernels of a module that stays loaded.
#[derive(Debug)]
pub struct Kernels {
    /// The kernels, in the order of `kernels.h`.
    pub functions: [*mut c_void; NUM_KERNELS],
    /// The driver's `cuLaunchKernel`.
    pub launch: *mut c_void,
    /// The driver's `cuGetErrorString`; null if there is none.
    pub describe: *mut c_void,
    /// Whether they are for tensors in host memory, as in tests.
    pub on_cpu: bool,
}

/// Sets the kernels; with `None`, operations of libtorch are used instead. Must not be called while
/// another thread uses them.
///
/// # Safety
/// The functions are those of `src/device/kernels`.
pub unsafe fn set_kernels(kernels: Option<Kernels>) {
    match kernels {
        // SAFETY: guaranteed by the caller; the array lives through the call.
        Some(k) => unsafe {
            dw_set_kernels(k.functions.as_ptr(), k.launch, k.describe, c_int::from(k.on_cpu));
        },
        // SAFETY: switches the kernels off; the array is not read.
        None => unsafe { dw_set_kernels(null(), null_mut(), null_mut(), 0) },
    }
}

/// Whether the kernels are loaded.
pub fn has_kernels() -> bool {
    // SAFETY: reads a flag; no preconditions.
    unsafe { dw_has_kernels() != 0 }
}
