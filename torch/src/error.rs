//! Errors of libtorch as errors of this program.

use std::ffi::{CStr, c_char, c_int};

use dw_base::failure::Failure;
use dw_base::{Error, Result};
use tch::TchError;

unsafe extern "C" {
    fn dw_last_error() -> *const c_char;
    fn dw_last_error_is_memory() -> c_int;
}

/// The exception that ended the last failing call of a C++ function on this thread.
pub(super) fn last_error() -> Error {
    // SAFETY: a C string that is valid until this thread's next failing call.
    let text = unsafe { CStr::from_ptr(dw_last_error()) }.to_string_lossy();
    let text = format!("libtorch: {}", without_frames(&text));
    // SAFETY: reads a flag of this thread.
    if unsafe { dw_last_error_is_memory() } != 0 {
        return Error::OutOfMemory(format!("{text}\n{}", Failure::Memory.hint()));
    }
    Error::from_library(&text)
}

/// Converts a status of a C++ function (0: success) into a result.
pub(super) fn check(status: c_int) -> Result<()> {
    if status == 0 { Ok(()) } else { Err(last_error()) }
}

/// An error of the `tch` bindings, which keep only the text of the exception.
pub fn error(e: TchError) -> Error {
    let text = match e {
        TchError::Torch(text) => text,
        other => other.to_string(),
    };
    Error::from_library(&format!("libtorch: {}", without_frames(&text)))
}

/// libtorch's message without the C++ stack that it appends.
fn without_frames(text: &str) -> &str {
    let marks = ["\nException raised from", "\nframe #0"];
    let end = marks.iter().filter_map(|mark| text.find(mark)).min();
    text[..end.unwrap_or(text.len())].trim_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_kept_without_its_stack_and_determines_the_exit_code() {
        for (text, code) in [
            ("CUDA out of memory. Tried to allocate 2.00 GiB", 5),
            ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", 5),
            ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", 5),
            ("CUDA error: uncorrectable ECC error encountered", 4),
            ("CUDA error: an illegal memory access was encountered", 70),
        ] {
            let raw = format!("{text}\nException raised from x at y.cpp:1\nframe #0: z");
            let e = error(TchError::Torch(raw));
            assert_eq!(e.exit_code(), code, "{text}");
            assert!(e.to_string().contains(text) && !e.to_string().contains("frame #0"), "{e}");
        }
        let text = "CUDA error: uncorrectable ECC error encountered".to_owned();
        let lost = error(TchError::Torch(text)).to_string();
        assert!(lost.contains(&dw_base::host::name()) && lost.contains("hint:"), "{lost}");
    }

    #[test]
    fn exhausted_memory_is_recognised_by_its_exception() {
        let e = crate::host_bytes(&[1 << 52], false).unwrap_err();
        assert!(matches!(e, Error::OutOfMemory(_)), "{e}");
    }
}
