//! What training asks of the other ranks. Every rank makes the same calls in the same order.

/// A collective that could not be done.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);

/// Result of a collective.
pub type Result<T> = std::result::Result<T, Error>;

/// How numbers of the ranks become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Sum.
    Sum,
    /// Minimum.
    Min,
    /// Maximum.
    Max,
}

/// A contiguous buffer of numbers that a collective changes in place.
#[derive(Debug, Clone, Copy)]
pub enum Buffer {
    /// `count` 32-bit floats in host memory.
    HostF32 {
        /// First number.
        ptr: *mut f32,
        /// Numbers.
        count: usize,
    },
    /// `count` 64-bit floats in host memory.
    HostF64 {
        /// First number.
        ptr: *mut f64,
        /// Numbers.
        count: usize,
    },
    /// `count` 32-bit floats on this rank's CUDA device.
    CudaF32 {
        /// First number.
        ptr: *mut f32,
        /// Numbers.
        count: usize,
    },
}

/// One job's processes. `gradients` is the only call on the hot path.
pub trait Collectives {
    /// `0..size`.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn size(&self) -> usize;

    /// Name for the settings table, as "MPI (Open MPI 4.1.4)".
    fn name(&self) -> String;

    /// Combines a device or host buffer over all ranks, in place.
    ///
    /// # Safety
    /// The buffer must be valid for reads and writes of its `count` numbers until the call returns.
    ///
    /// # Errors
    /// A lost peer, or a buffer this implementation has no way for.
    unsafe fn all_reduce_raw(&self, buffer: Buffer, op: Op) -> Result<()>;

    /// Every rank's bytes on rank 0 in rank order; empty on the others.
    fn gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Rank 0's bytes on every rank.
    fn broadcast_bytes(&self, bytes: Vec<u8>) -> Result<Vec<u8>>;

    /// Returns when every rank has called it.
    fn barrier(&self) -> Result<()>;

    /// Ends every rank of the job at once with this exit code.
    fn abort(&self, code: i32) -> !;

    /// Combines host numbers over all ranks, in place.
    fn all_reduce(&self, values: &mut [f64], op: Op) -> Result<()> {
        let buffer = Buffer::HostF64 { ptr: values.as_mut_ptr(), count: values.len() };
        // SAFETY: the slice is borrowed mutably for the whole call.
        unsafe { self.all_reduce_raw(buffer, op) }
    }
}

/// A job of one process.
#[derive(Debug)]
pub struct Solo;

impl Collectives for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn name(&self) -> String {
        "none (one process)".into()
    }

    unsafe fn all_reduce_raw(&self, _: Buffer, _: Op) -> Result<()> {
        Ok(())
    }

    fn gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![bytes.to_vec()])
    }

    fn broadcast_bytes(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        Ok(bytes)
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }

    fn abort(&self, code: i32) -> ! {
        std::process::exit(code)
    }
}
