//! The stream of a GPU on which NCCL sums gradients while backward runs.

use std::ffi::c_void;

use dw_launch::nccl::SideStream;
use dw_torch::Stream;

use crate::Result;

/// A stream beside the compute stream, which is libtorch's current one.
#[derive(Debug)]
pub struct CudaSide(Stream);

impl CudaSide {
    /// Takes a stream of device `index` from libtorch's pool.
    ///
    /// # Errors
    /// The device does not exist.
    pub fn new(index: usize) -> Result<Self> {
        Stream::new(index).map(Self)
    }

    /// Runs `f` with this stream as the calling thread's current stream.
    ///
    /// # Errors
    /// libtorch cannot change the current stream.
    pub fn run(&self, f: impl FnMut()) -> Result<()> {
        self.0.run(f)
    }
}

impl SideStream for CudaSide {
    fn handle(&self) -> *mut c_void {
        self.0.handle()
    }

    fn after_compute(&self) {
        expect(self.0.wait_for_current());
    }

    fn before_compute(&self) {
        expect(self.0.make_current_wait());
    }
}

/// `SideStream` has no error path. The panic's text is classified, so that a failed device still
/// gets its own exit code.
fn expect(ordered: Result<()>) {
    if let Err(e) = ordered {
        panic!("ordering two CUDA streams: {e}");
    }
}
