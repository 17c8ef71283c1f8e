//! What an implementation of collectives does: one trait, three implementations ([`Solo`], MPI, NCCL).
//! Users of a job call [`crate::World`], which numbers, logs and watches these calls.

use std::ffi::c_void;

/// What could not be done: a collective, joining a job, starting one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A mistake, a set-up that cannot work, or a peer that failed: which of them, the caller knows.
    #[error("{0}")]
    Failed(String),
    /// The system gave no thread, process, descriptor or memory (exit code 5).
    #[error("{0}")]
    Resources(String),
}

/// What to do when the system refuses a thread or process.
const MORE: &str = "hint: something uses up the limits of this user, container or machine (ulimit -u, \
                    the cgroup's pids.max, memory); fewer ranks or threads need less";

impl Error {
    /// A failed system call: [`Error::Resources`] where a limit was reached.
    pub fn system(doing: &str, e: &std::io::Error) -> Self {
        let limits = [libc::EAGAIN, libc::ENOMEM, libc::EMFILE, libc::ENFILE];
        if e.raw_os_error().is_some_and(|code| limits.contains(&code)) {
            Self::Resources(format!("{doing}: {e}\n{MORE}"))
        } else {
            Self::Failed(format!("{doing}: {e}"))
        }
    }

    /// A thread that could not be started, whatever the system says about it.
    pub fn thread(name: &str, e: &std::io::Error) -> Self {
        Self::Resources(format!("cannot start the thread `{name}`: {e}\n{MORE}"))
    }

    /// The system ran out of something: exit code 5, and no peer is to blame.
    pub fn out_of_resources(&self) -> bool {
        matches!(self, Self::Resources(_))
    }
}

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

/// Kind of a buffer's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// 32-bit float.
    F32,
    /// 64-bit float.
    F64,
    /// The upper half of a 32-bit float. Sums only, added in f32 and rounded to nearest, ties to even.
    Bf16,
}

impl Number {
    /// Bytes of one.
    pub fn width(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F64 => 8,
            Self::Bf16 => 2,
        }
    }
}

/// Where a buffer lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// The host's.
    Host,
    /// This rank's CUDA device's.
    Cuda,
}

/// A contiguous buffer of numbers that a collective changes in place.
#[derive(Debug, Clone, Copy)]
pub struct Buffer {
    /// First number.
    pub ptr: *mut c_void,
    /// Numbers.
    pub count: usize,
    /// Their kind.
    pub number: Number,
    /// Where they are.
    pub memory: Memory,
}

/// How a job's processes talk. Every rank makes the same calls in the same order, one thread at a time; only
/// [`Collectives::health`] and [`Collectives::abort`] may be called beside another call.
pub trait Collectives: Send + Sync {
    /// `0..size`.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn size(&self) -> usize;

    /// Name for the settings table, as "MPI (Open MPI 4.1.4)".
    fn name(&self) -> String;

    /// Combines a buffer over all ranks, in place.
    ///
    /// # Safety
    /// The buffer must be valid for reads and writes of its `count` numbers until the call returns.
    unsafe fn all_reduce(&self, buffer: Buffer, op: Op) -> Result<()>;

    /// Starts to add a buffer over all ranks, in place, and returns at once.
    ///
    /// # Safety
    /// The buffer must be valid, and nobody else may touch it, until [`Collectives::finish`] has returned.
    unsafe fn start_sum(&self, buffer: Buffer) -> Result<()>;

    /// Moves started sums on, where somebody must. Returns at once.
    fn progress(&self) -> Result<()>;

    /// Returns when all started sums are done; on a device, when what is enqueued from now on comes after them.
    fn finish(&self) -> Result<()>;

    /// Every rank's bytes on rank 0 in rank order; empty on the others.
    fn gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Rank 0's bytes on every rank.
    fn broadcast_bytes(&self, bytes: Vec<u8>) -> Result<Vec<u8>>;

    /// Returns when every rank has called it.
    fn barrier(&self) -> Result<()>;

    /// An error that happened behind the host's back.
    fn health(&self) -> Result<()> {
        Ok(())
    }

    /// Leaves the job in peace; no call may follow.
    fn leave(&self) {}

    /// Ends every rank of the job at once with this exit code.
    fn abort(&self, code: i32) -> !;
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
        crate::abort::exit_now(code)
    }
}
