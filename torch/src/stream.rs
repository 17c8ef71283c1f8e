//! A second stream of a CUDA device, next to the compute stream.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

use dw_base::Result;

use super::error::{check, last_error};

unsafe extern "C" {
    fn dw_side_stream(index: i64) -> *mut c_void;
    fn dw_side_drop(side: *mut c_void);
    fn dw_side_handle(side: *const c_void) -> *mut c_void;
    fn dw_side_order(side: *const c_void, side_waits: c_int) -> c_int;
    fn dw_side_run(
        side: *const c_void,
        call: unsafe extern "C" fn(*mut c_void),
        context: *mut c_void,
    ) -> c_int;
}

/// A high-priority stream of a CUDA device, used for communication.
#[derive(Debug)]
pub struct Stream(NonNull<c_void>);

// SAFETY: libtorch's streams and events may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above; the stream has no mutable state.
unsafe impl Sync for Stream {}

impl Stream {
    /// Takes a stream of device `index` from libtorch's pool.
    ///
    /// # Errors
    /// The device does not exist.
    pub fn new(index: usize) -> Result<Self> {
        // SAFETY: no preconditions; null on failure.
        NonNull::new(unsafe { dw_side_stream(index as i64) }).map(Self).ok_or_else(last_error)
    }

    /// Runs `f` with this stream as the calling thread's current stream, so that the work `f`
    /// enqueues runs on it.
    ///
    /// # Errors
    /// libtorch cannot change the current stream.
    pub fn run(&self, mut f: impl FnMut()) -> Result<()> {
        unsafe extern "C" fn call<F: FnMut()>(context: *mut c_void) {
            // SAFETY: a pointer to `f`, which is borrowed for the whole call.
            unsafe { (*context.cast::<F>())() }
        }
        fn pointer<F: FnMut()>(_: &F) -> unsafe extern "C" fn(*mut c_void) {
            call::<F>
        }
        let call = pointer(&f);
        // SAFETY: the stream is alive and the closure outlives the call, which calls it once.
        check(unsafe { dw_side_run(self.0.as_ptr(), call, (&raw mut f).cast()) })
    }

    /// The `cudaStream_t`.
    pub fn handle(&self) -> *mut c_void {
        // SAFETY: the stream is alive.
        unsafe { dw_side_handle(self.0.as_ptr()) }
    }

    /// Makes later work on this stream wait for the work enqueued on the current stream.
    ///
    /// # Errors
    /// The device failed.
    pub fn wait_for_current(&self) -> Result<()> {
        // SAFETY: the stream is alive.
        check(unsafe { dw_side_order(self.0.as_ptr(), 1) })
    }

    /// Makes later work on the current stream wait for the work enqueued on this stream.
    ///
    /// # Errors
    /// The device failed.
    pub fn make_current_wait(&self) -> Result<()> {
        // SAFETY: the stream is alive.
        check(unsafe { dw_side_order(self.0.as_ptr(), 0) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the stream came from `dw_side_stream` and is released once.
        unsafe { dw_side_drop(self.0.as_ptr()) }
    }
}
