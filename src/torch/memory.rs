//! Copies to the host, and what a device's allocator counts.

use std::ffi::c_int;

use tch::{Device, Tensor};

use super::{Result, check, last_error};

unsafe extern "C" {
    fn dw_to_host(tensor: *const torch_sys::C_tensor) -> *mut torch_sys::C_tensor;
    fn dw_host_floats(
        shape: *const i64,
        dimensions: usize,
        pinned: c_int,
    ) -> *mut torch_sys::C_tensor;
    fn dw_peak_bytes(index: i64) -> i64;
    fn dw_reset_peak_bytes(index: i64) -> c_int;
}

/// A copy in host memory, of the same kind, shape and layout; page-locked where the tensor is on a GPU,
/// which copies several times faster.
///
/// # Errors
/// Memory ran out, or the device failed.
pub fn to_host(tensor: &Tensor) -> Result<Tensor> {
    // SAFETY: a live tensor for the whole call; the C++ side returns a new tensor or null.
    owned(unsafe { dw_to_host(tensor.as_ptr()) })
}

/// Uninitialised f32 numbers in host memory, page-locked on request: a GPU copies such memory by itself, while the
/// host goes on.
///
/// # Errors
/// Memory ran out.
pub fn host_floats(shape: &[i64], pinned: bool) -> Result<Tensor> {
    // SAFETY: the shape outlives the call; the C++ side returns a new tensor or null.
    owned(unsafe { dw_host_floats(shape.as_ptr(), shape.len(), c_int::from(pinned)) })
}

/// Takes over a tensor that the C++ side made, or reads why there is none.
fn owned(out: *mut torch_sys::C_tensor) -> Result<Tensor> {
    if out.is_null() {
        return Err(last_error());
    }
    // SAFETY: a new tensor that nobody else owns.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// Most bytes that tensors on a GPU have held at once since the last [`reset_peak_bytes`]; `None` on the CPU.
///
/// # Errors
/// libtorch has no allocator for the device.
pub fn peak_bytes(device: Device) -> Result<Option<u64>> {
    let Device::Cuda(index) = device else { return Ok(None) };
    // SAFETY: no preconditions; -1 on failure.
    let bytes = unsafe { dw_peak_bytes(index as i64) };
    u64::try_from(bytes).map(Some).map_err(|_| last_error())
}

/// Starts [`peak_bytes`] anew; does nothing on the CPU.
///
/// # Errors
/// libtorch has no allocator for the device.
pub fn reset_peak_bytes(device: Device) -> Result<()> {
    let Device::Cuda(index) = device else { return Ok(()) };
    // SAFETY: no preconditions.
    check(unsafe { dw_reset_peak_bytes(index as i64) })
}
