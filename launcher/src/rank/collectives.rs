//! Collective operations of a job: the trait, implemented by three backends ([`Solo`], MPI, NCCL).
//! The trainer calls them through [`World`](super::World), which logs them and enforces deadlines.

use std::ffi::c_void;

use dw_base::Result;

/// Reduction operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Sum.
    Sum,
    /// Minimum.
    Min,
    /// Maximum.
    Max,
}

/// Element type of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// 32-bit float.
    F32,
    /// 64-bit float.
    F64,
    /// bfloat16. Supports [`Op::Sum`] only; MPI adds in f32 and rounds to nearest, ties to even.
    Bf16,
}

impl Number {
    /// Size of an element in bytes.
    pub fn width(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F64 => 8,
            Self::Bf16 => 2,
        }
    }
}

/// Memory that holds a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Host memory.
    Host,
    /// Memory of this rank's CUDA device.
    Cuda,
}

/// A contiguous buffer that a collective changes in place.
#[derive(Debug, Clone, Copy)]
pub struct Buffer {
    /// First element.
    pub ptr: *mut c_void,
    /// Number of elements.
    pub count: usize,
    /// Element type.
    pub number: Number,
    /// Memory that `ptr` points to.
    pub memory: Memory,
}

/// A backend for collectives. Every rank makes the same calls in the same order, one thread at a
/// time; only [`Collectives::health`] and [`Collectives::abort`] may run concurrently with another
/// call.
pub trait Collectives: Send + Sync {
    /// Rank of this process, `0..size`.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn size(&self) -> usize;

    /// Name of the backend for the settings table, such as "MPI (Open MPI 4.1.4)".
    fn name(&self) -> String;

    /// Reduces a buffer over all ranks, in place.
    ///
    /// # Safety
    /// The buffer must be valid for reads and writes of its `count` elements until the call
    /// returns.
    unsafe fn all_reduce(&self, buffer: Buffer, op: Op) -> Result<()>;

    /// Starts a non-blocking sum of a buffer over all ranks, in place.
    ///
    /// # Safety
    /// The buffer must be valid, and nothing else may access it, until [`Collectives::finish`] has
    /// returned.
    unsafe fn start_sum(&self, buffer: Buffer) -> Result<()>;

    /// Polls pending non-blocking sums, for backends that make progress only inside their calls.
    fn progress(&self) -> Result<()>;

    /// Waits for all pending sums. On a device it does not block the host: work that is enqueued
    /// afterwards runs after the sums.
    fn finish(&self) -> Result<()>;

    /// Gathers the bytes of every rank on rank 0, in rank order; empty on the other ranks.
    fn gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Broadcasts the bytes of rank 0; the argument of the other ranks is ignored.
    fn broadcast_bytes(&self, bytes: Vec<u8>) -> Result<Vec<u8>>;

    /// Waits until every rank has called it.
    fn barrier(&self) -> Result<()>;

    /// Checks for asynchronous errors.
    fn health(&self) -> Result<()> {
        Ok(())
    }

    /// Shuts the backend down; no call may follow.
    fn leave(&self) {}

    /// Ends every rank of the job immediately with this exit code.
    fn abort(&self, code: i32) -> !;
}

/// Backend for a job of one process.
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

    unsafe fn all_reduce(&self, _: Buffer, _: Op) -> Result<()> {
        Ok(())
    }

    unsafe fn start_sum(&self, _: Buffer) -> Result<()> {
        Ok(())
    }

    fn progress(&self) -> Result<()> {
        Ok(())
    }

    fn finish(&self) -> Result<()> {
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
        super::abort::exit_now(code)
    }
}
