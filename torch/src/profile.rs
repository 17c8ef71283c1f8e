//! libtorch's profiler, and a count of the calls that block the host until a GPU has finished.

use std::ffi::{CString, c_char, c_int};
use std::path::Path;

use dw_base::{Error, Result};
use tch::Device;

use super::error::check;

unsafe extern "C" {
    fn dw_profile_start(cuda: c_int) -> c_int;
    fn dw_profile_stop(path: *const c_char) -> c_int;
    fn dw_count_syncs_start() -> c_int;
    fn dw_count_syncs_stop() -> i64;
}

/// A running recording of host operations and, on a GPU, of kernels and copies.
#[derive(Debug)]
pub struct Profile(());

impl Profile {
    /// Starts recording.
    ///
    /// # Errors
    /// The profiler's library (CUPTI on a GPU) cannot be used on this machine.
    pub fn start(device: Device) -> Result<Self> {
        // SAFETY: no preconditions.
        check(unsafe { dw_profile_start(c_int::from(device.is_cuda())) })?;
        Ok(Self(()))
    }

    /// Stops recording and writes a Chrome trace (JSON) to `path`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(self, path: &Path) -> Result<()> {
        let text = CString::new(path.as_os_str().as_encoded_bytes());
        let text = text.map_err(|e| Error::Usage(format!("{}: {e}", path.display())))?;
        // SAFETY: the text outlives the call.
        check(unsafe { dw_profile_stop(text.as_ptr()) })
    }
}

/// Runs `f` and counts the calls in it, backward included, that wait for a CUDA device.
///
/// # Errors
/// libtorch's CUDA library is not loaded.
pub fn count_syncs<T>(f: impl FnOnce() -> T) -> Result<(T, u64)> {
    // SAFETY: sets a mode of libtorch and this thread's warning handler, which is a static.
    check(unsafe { dw_count_syncs_start() })?;
    let out = f();
    // SAFETY: restores both on the same thread.
    let count = unsafe { dw_count_syncs_stop() };
    Ok((out, count as u64))
}
