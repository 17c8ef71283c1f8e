//! Copies of numbers to the host that do not block it.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::NonNull;

use dw_base::Result;
use tch::{Kind, Tensor};

use super::error::{error, last_error};
use super::memory::owned;

unsafe extern "C" {
    fn dw_readback_start(tensor: *const torch_sys::C_tensor) -> *mut c_void;
    fn dw_readback_wait(copy: *mut c_void) -> *mut torch_sys::C_tensor;
    fn dw_readback_drop(copy: *mut c_void);
}

thread_local! {
    static WAITS: Cell<u64> = const { Cell::new(0) };
}

/// A copy of a vector to the host. All numbers of training that the host reads pass through here,
/// so that no other place makes the host wait for the device.
#[derive(Debug)]
pub struct Readback(NonNull<c_void>);

// SAFETY: a tensor in host memory and an event, which may be used from any thread.
unsafe impl Send for Readback {}

impl Readback {
    /// Starts to copy a vector of f64, after the work enqueued so far.
    ///
    /// # Errors
    /// Out of memory, or the device failed.
    pub fn start(vector: &Tensor) -> Result<Self> {
        assert!(vector.kind() == Kind::Double && vector.dim() == 1, "a vector of f64");
        // SAFETY: the tensor lives through the call; null on failure.
        NonNull::new(unsafe { dw_readback_start(vector.as_ptr()) }).map(Self).ok_or_else(last_error)
    }

    /// Waits until the copy is complete.
    ///
    /// # Errors
    /// The device failed.
    pub fn wait(self) -> Result<Vec<f64>> {
        WAITS.set(WAITS.get() + 1);
        let copy = std::mem::ManuallyDrop::new(self);
        // SAFETY: the pointer came from `dw_readback_start`; this call frees it, and `drop` is not
        // called.
        let host = owned(unsafe { dw_readback_wait(copy.0.as_ptr()) })?;
        Vec::<f64>::try_from(&host).map_err(error)
    }

    /// Number of waits of this thread so far.
    pub fn waits_of_this_thread() -> u64 {
        WAITS.get()
    }
}

impl Drop for Readback {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `dw_readback_start` and is freed once. libtorch frees
        // page-locked memory only after the copy to it.
        unsafe { dw_readback_drop(self.0.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_the_values_at_its_start() {
        let t = Tensor::from_slice(&[1.0f64, -2.5]);
        let copy = Readback::start(&t).unwrap();
        let _ = t.shallow_clone().fill_(0.0);
        drop(Readback::start(&t).unwrap());
        assert_eq!(copy.wait().unwrap(), [1.0, -2.5]);
        assert_eq!(Readback::waits_of_this_thread(), 1);
    }
}
