//! Page-locked host memory, copies to it, and peak memory of a GPU.

use std::ffi::c_int;

use dw_base::Result;
use tch::{Device, Tensor};

use super::error::{check, last_error};

unsafe extern "C" {
    fn dw_to_host(tensor: *const torch_sys::C_tensor) -> *mut torch_sys::C_tensor;
    fn dw_host_bytes(
        shape: *const i64,
        dimensions: usize,
        pinned: c_int,
    ) -> *mut torch_sys::C_tensor;
    fn dw_page_locked(tensor: *const torch_sys::C_tensor) -> *mut torch_sys::C_tensor;
    fn dw_peak_bytes(index: i64) -> i64;
    fn dw_reset_peak_bytes(index: i64) -> c_int;
}

/// Copies a tensor to host memory, with its kind, shape and strides. The copy of a tensor on a GPU
/// is page-locked, which makes the transfer several times faster.
///
/// # Errors
/// Out of memory, or the device failed.
pub fn to_host(tensor: &Tensor) -> Result<Tensor> {
    // SAFETY: the tensor lives through the call; the C++ function returns a new tensor or null.
    owned(unsafe { dw_to_host(tensor.as_ptr()) })
}

/// An uninitialised u8 tensor in host memory, page-locked if `pinned`: a copy from page-locked
/// memory to a GPU runs asynchronously to the host.
///
/// # Errors
/// Out of memory.
pub fn host_bytes(shape: &[i64], pinned: bool) -> Result<Tensor> {
    // SAFETY: the shape outlives the call; the C++ function returns a new tensor or null.
    owned(unsafe { dw_host_bytes(shape.as_ptr(), shape.len(), c_int::from(pinned)) })
}

/// Copies a tensor in host memory to page-locked memory; see [`upload`].
///
/// # Errors
/// Out of memory.
pub fn page_locked(tensor: &Tensor) -> Result<Tensor> {
    // SAFETY: the tensor lives through the call; the C++ function returns a new tensor or null.
    owned(unsafe { dw_page_locked(tensor.as_ptr()) })
}

/// Copies a tensor to `device`; a tensor that is already there is shared. The host does not wait if
/// the tensor is in page-locked memory.
pub fn upload(tensor: &Tensor, device: Device) -> Tensor {
    tensor.to_device_(device, tensor.kind(), true, false)
}

/// Takes ownership of a tensor that a C++ function returned, or reads the error if it is null.
pub(super) fn owned(out: *mut torch_sys::C_tensor) -> Result<Tensor> {
    if out.is_null() {
        return Err(last_error());
    }
    // SAFETY: a new tensor without another owner.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// Peak of the bytes allocated to tensors on a GPU since the last [`reset_peak_bytes`]; `None` on
/// the CPU.
///
/// # Errors
/// libtorch has no allocator for the device.
pub fn peak_bytes(device: Device) -> Result<Option<u64>> {
    let Device::Cuda(index) = device else { return Ok(None) };
    // SAFETY: no preconditions; -1 on failure.
    let bytes = unsafe { dw_peak_bytes(index as i64) };
    u64::try_from(bytes).map(Some).map_err(|_| last_error())
}

/// Restarts the measurement of [`peak_bytes`]; does nothing on the CPU.
///
/// # Errors
/// libtorch has no allocator for the device.
pub fn reset_peak_bytes(device: Device) -> Result<()> {
    let Device::Cuda(index) = device else { return Ok(()) };
    // SAFETY: no preconditions.
    check(unsafe { dw_reset_peak_bytes(index as i64) })
}
