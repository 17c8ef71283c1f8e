//! libtorch's profiler, and the number of times that the host waits for a GPU.

use std::ffi::{CString, c_char, c_int};
use std::path::Path;

use tch::{Device, TchError};

use super::{Result, check};

unsafe extern "C" {
    fn dw_profile_start(cuda: c_int) -> c_int;
    fn dw_profile_stop(path: *const c_char) -> c_int;
    fn dw_count_syncs_start() -> c_int;
    fn dw_count_syncs_stop() -> i64;
}

/// A recording of operations, and of kernels and copies on a GPU.
#[derive(Debug)]
pub struct Profile(());

impl Profile {
    /// Records from now on.
    ///
    /// # Errors
    /// The profiler's library cannot be used on this machine.
    pub fn start(device: Device) -> Result<Self> {
        // SAFETY: no preconditions.
        check(unsafe { dw_profile_start(c_int::from(device.is_cuda())) })?;
        Ok(Self(()))
    }

    /// Ends the recording and writes it as a Chrome trace (JSON).
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(self, path: &Path) -> Result<()> {
        let text = CString::new(path.as_os_str().as_encoded_bytes());
        let text = text.map_err(|e| TchError::FileFormat(format!("{}: {e}", path.display())))?;
        // SAFETY: the text outlives the call.
        check(unsafe { dw_profile_stop(text.as_ptr()) })
    }
}

/// Runs `f` and counts the calls in it, backward included, that wait for a CUDA device.
///
/// # Errors
/// libtorch's CUDA half is not loaded.
pub fn count_syncs<T>(f: impl FnOnce() -> T) -> Result<(T, u64)> {
    // SAFETY: changes a setting of libtorch and this thread's warning handler, which lives for ever.
    check(unsafe { dw_count_syncs_start() })?;
    let out = f();
    // SAFETY: undoes the above on the same thread.
    let count = unsafe { dw_count_syncs_stop() };
    Ok((out, count as u64))
}
