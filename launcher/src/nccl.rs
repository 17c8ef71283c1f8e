//! All-reduce in device memory over NCCL. The library is the one that libtorch's CUDA half has
//! loaded, found at run time: a build needs no CUDA, and one binary serves machines with and
//! without GPUs. Everything that is not device memory goes to the communicator underneath, which
//! also carries NCCL's id.
//!
//! The communicator is non-blocking: no call waits inside the library for a peer, and every wait
//! here has a deadline. NCCL allows one thread at a time on a communicator, and even
//! `ncclCommGetAsyncError` is no plain read: it completes the pending group of a non-blocking
//! communicator. The communicator is therefore behind a mutex, which the watchdog only tries to
//! take.

mod api;

use std::ffi::{c_int, c_void};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use dw_base::text::shown;

use self::api::{Api, Comm, Config, IN_PROGRESS, SUCCESS, UniqueId};
use crate::collectives::{Buffer, Collectives, Error, Memory, Number, Op, Result};

/// What joining may take: large jobs open thousands of connections.
const JOIN: Duration = Duration::from_mins(5);
const POLL: Duration = Duration::from_millis(2);
/// Up to here a wait does not sleep.
const SPIN: Duration = Duration::from_millis(5);
/// How long leaving waits for another thread's call to end. The watchdog's takes microseconds.
const LEAVE: Duration = Duration::from_secs(10);

/// The NCCL that is in this process, which libtorch's CUDA half has loaded. Displayed as
/// "2.28.9 (/path/libnccl.so.2)".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// As "2.28.9".
    pub version: String,
    /// The library's file.
    pub path: PathBuf,
}

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.version, shown(&self.path.to_string_lossy()))
    }
}

/// Which NCCL is in this process; `None` where libtorch's CUDA half has not been opened yet or came
/// without one. Loads nothing.
pub fn loaded() -> Option<Loaded> {
    let origin = api::origin_of_loaded()?;
    Some(Loaded { version: origin.version(), path: origin.path })
}

/// Version of the NCCL that is in this process, as "2.28.9"; see [`loaded`].
pub fn version() -> Option<String> {
    loaded().map(|l| l.version)
}

/// A stream of the device that NCCL works on, and its order against the stream that computes.
pub trait SideStream: Send + Sync {
    /// Its `cudaStream_t`.
    fn handle(&self) -> *mut c_void;
    /// What is enqueued here from now on comes after what the computing stream holds now.
    fn after_compute(&self);
    /// What the computing stream gets from now on comes after what this stream holds now.
    fn before_compute(&self);
}

/// The opened library, 2.18 or newer.
pub struct Library(Api);

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NCCL")
    }
}

impl Library {
    /// Loads the library at `path`. For tests: a trainer uses the one of libtorch
    /// ([`Library::open_on_all`]).
    ///
    /// # Errors
    /// No such library, not NCCL, or older than 2.18.
    pub fn open(path: &Path) -> Result<Self> {
        Api::open(path).map(Self)
    }

    /// Takes the library that libtorch's CUDA half has loaded, on all ranks of `base` or on none: a
    /// rank that gave up alone would leave the others waiting. To be called after that half has
    /// been opened.
    ///
    /// # Errors
    /// Every rank gets the same text: which ranks have no NCCL, or one older than 2.18, and why.
    pub fn open_on_all(base: &dyn Collectives) -> Result<Self> {
        let api = Api::loaded();
        let mine = api
            .as_ref()
            .err()
            .map(|e| format!("rank {} on {}: {e}", base.rank(), crate::host()))
            .unwrap_or_default();
        let all = base.gather_bytes(mine.as_bytes())?;
        let text: Vec<String> = all
            .iter()
            .filter(|t| !t.is_empty())
            .map(|t| String::from_utf8_lossy(t).into_owned())
            .collect();
        let text = base.broadcast_bytes(text.join("\n").into_bytes())?;
        if text.is_empty() {
            Ok(Self(api?))
        } else {
            Err(Error::Failed(String::from_utf8_lossy(&text).into_owned()))
        }
    }
}

/// The communicator; null before it is made and after it was aborted.
struct Handle(Comm);

// SAFETY: NCCL's calls on one communicator may come from any thread, one at a time, which the mutex
// around the handle sees to.
unsafe impl Send for Handle {}

/// Takes a lock, and gives up when it is not free within `limit`.
fn lock_within<T>(mutex: &Mutex<T>, limit: Duration) -> Option<MutexGuard<'_, T>> {
    let began = Instant::now();
    loop {
        match mutex.try_lock() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(e)) => return Some(e.into_inner()),
            Err(TryLockError::WouldBlock) if began.elapsed() < limit => std::thread::sleep(POLL),
            Err(TryLockError::WouldBlock) => return None,
        }
    }
}

/// NCCL for device buffers over another communicator for all else.
pub struct Nccl {
    api: Api,
    /// Held during every call that takes the communicator, and from the start of an all-reduce
    /// until the library has enqueued it.
    comm: Mutex<Handle>,
    base: Arc<dyn Collectives>,
    stream: Box<dyn SideStream>,
}

impl Nccl {
    /// Joins all ranks of `base` into one NCCL communicator. This rank's CUDA device must be
    /// current.
    ///
    /// # Errors
    /// An initialisation that failed or took too long: the caller ends the job, since others may
    /// wait inside NCCL.
    pub fn join(
        library: Library,
        base: Arc<dyn Collectives>,
        stream: Box<dyn SideStream>,
    ) -> Result<Self> {
        let api = library.0;
        let own = if base.rank() == 0 { api.id()?.internal.to_vec() } else { vec![] };
        let mut all = UniqueId { internal: [0; 128] };
        all.internal.copy_from_slice(&base.broadcast_bytes(own)?);
        let (mut comm, mut config): (Comm, _) = (std::ptr::null_mut(), Config::non_blocking());
        // SAFETY: `comm` and `config` outlive the call; every rank of `base` makes it with the same
        // id and size.
        let code = unsafe {
            (api.init_rank)(
                &raw mut comm,
                base.size() as c_int,
                all,
                base.rank() as c_int,
                &raw mut config,
            )
        };
        let nccl = Self { api, comm: Mutex::new(Handle(comm)), base, stream };
        nccl.settle(&nccl.lock(), code, "joining the ranks")?;
        Ok(nccl)
    }

    /// Waits for its turn with the communicator.
    fn lock(&self) -> MutexGuard<'_, Handle> {
        // A panic elsewhere left the handle as it was: it only changes when the job leaves.
        self.comm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the communicator has done in the background what a call that returned `code` was
    /// asked for.
    fn settle(&self, comm: &Handle, code: c_int, doing: &str) -> Result<()> {
        let began = Instant::now();
        let mut state = code;
        loop {
            match state {
                IN_PROGRESS if began.elapsed() > JOIN => {
                    let limit = JOIN.as_secs();
                    let text = format!("NCCL: {doing} took more than {limit} s");
                    return Err(Error::Failed(text));
                }
                // Enqueueing takes microseconds, and backward waits for it; joining takes seconds.
                IN_PROGRESS if began.elapsed() < SPIN => std::thread::yield_now(),
                IN_PROGRESS => std::thread::sleep(POLL),
                code => return self.api.check(code, doing, comm.0),
            }
            // SAFETY: the communicator is alive and ours while it is locked, `state` outlives the
            // call.
            let code = unsafe { (self.api.async_error)(comm.0, &raw mut state) };
            self.api.check(code, doing, comm.0)?;
        }
    }

    /// Enqueues an all-reduce behind the gradients that the computing stream is about to make.
    unsafe fn enqueue(&self, buffer: &Buffer, op: Op) -> Result<()> {
        // `ncclDataType_t` and `ncclRedOp_t`.
        let kind = match buffer.number {
            Number::F32 => 7,
            Number::F64 => 8,
            Number::Bf16 => 9,
        };
        let op = match op {
            Op::Sum => 0,
            Op::Max => 2,
            Op::Min => 3,
        };
        self.stream.after_compute();
        let (ptr, stream) = (buffer.ptr, self.stream.handle());
        let comm = self.lock();
        if comm.0.is_null() {
            return Err(Error::Failed("NCCL: an all-reduce after the job was left".into()));
        }
        // SAFETY: the caller vouches for the buffer until the sum is finished.
        let code =
            unsafe { (self.api.all_reduce)(ptr, ptr, buffer.count, kind, op, comm.0, stream) };
        // A thread of the library enqueues it, and opens connections before the first.
        self.settle(&comm, code, "all-reduce")
    }

    /// Aborts the communicator.
    fn give_up(&self) {
        // Without a limit a thread that hangs in the library would keep the rank from leaving.
        // Where it is the watchdog's own, no deadline would end that.
        let Some(mut comm) = lock_within(&self.comm, LEAVE) else {
            let limit = LEAVE.as_secs();
            tracing::warn!(
                "NCCL: another thread is inside the library for more than {limit} s: leaving \
                 without an abort of the communicator"
            );
            return;
        };
        let handle = std::mem::replace(&mut comm.0, std::ptr::null_mut());
        if !handle.is_null() {
            // Abort, not destroy: destroy waits for peers, which may be gone.
            // SAFETY: made by `ncclCommInitRankConfig`, no other thread uses it now, and none will.
            unsafe { (self.api.abort)(handle) };
        }
    }
}

impl Collectives for Nccl {
    fn rank(&self) -> usize {
        self.base.rank()
    }

    fn size(&self) -> usize {
        self.base.size()
    }

    fn name(&self) -> String {
        format!("NCCL {} over {}", self.api.origin.version(), self.base.name())
    }

    unsafe fn all_reduce(&self, buffer: Buffer, op: Op) -> Result<()> {
        // SAFETY: the caller's promise is passed on.
        unsafe {
            if buffer.memory == Memory::Host {
                return self.base.all_reduce(buffer, op);
            }
            self.enqueue(&buffer, op)?;
        }
        self.stream.before_compute();
        Ok(())
    }

    unsafe fn start_sum(&self, buffer: Buffer) -> Result<()> {
        // SAFETY: the caller's promise is passed on.
        unsafe {
            if buffer.memory == Memory::Host {
                return self.base.start_sum(buffer);
            }
            self.enqueue(&buffer, Op::Sum)
        }
    }

    fn progress(&self) -> Result<()> {
        self.base.progress()
    }

    fn finish(&self) -> Result<()> {
        self.stream.before_compute();
        self.base.finish()
    }

    fn gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.base.gather_bytes(bytes)
    }

    fn broadcast_bytes(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        self.base.broadcast_bytes(bytes)
    }

    fn barrier(&self) -> Result<()> {
        self.base.barrier()
    }

    fn health(&self) -> Result<()> {
        // Held by a thread inside the library, or while the communicator is being aborted: that
        // thread sees an error itself, and the deadline of its collective ends a call that hangs.
        let Ok(comm) = self.comm.try_lock() else { return Ok(()) };
        if comm.0.is_null() {
            return Ok(());
        }
        let mut state = SUCCESS;
        // SAFETY: the communicator is alive and ours while it is locked, `state` outlives the call.
        let code = unsafe { (self.api.async_error)(comm.0, &raw mut state) };
        let state = if code == SUCCESS { state } else { code };
        if state == IN_PROGRESS {
            Ok(())
        } else {
            self.api.check(state, "a collective in the background", comm.0)
        }
    }

    fn leave(&self) {
        self.give_up();
        self.base.leave();
    }

    fn abort(&self, code: i32) -> ! {
        // NCCL's own abort may hang and adds nothing: the process ends, and with it its
        // communicator.
        self.base.abort(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_stays_taken_is_given_up() {
        let mutex = Mutex::new(1);
        let taken = mutex.lock().unwrap();
        assert!(lock_within(&mutex, Duration::from_millis(10)).is_none());
        drop(taken);
        assert!(lock_within(&mutex, Duration::ZERO).is_some());
    }

    /// Without a GPU this is as far as NCCL goes: it opens, knows its version, makes ids, and
    /// refuses to join with a readable error.
    #[test]
    fn the_real_library_where_there_is_one() {
        let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
            || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache"),
            PathBuf::from,
        );
        let fetched = cache.join("dw/nccl-2.28.9/nvidia/nccl/lib").join(api::LIBRARY);
        if !fetched.is_file() {
            eprintln!("skipped: no NCCL in the machine's cache (tools/setup.sh tests fetches it)");
            return;
        }
        let api = Api::open(&fetched).unwrap();
        assert_eq!(api.origin.version(), "2.28.9");
        assert_eq!(api.origin.path, fetched.canonicalize().unwrap());
        let loaded = loaded().unwrap();
        assert_eq!(loaded.to_string(), format!("2.28.9 ({})", loaded.path.display()));
        let (a, b) = (api.id().unwrap(), api.id().unwrap());
        assert!(a.internal != [0; 128] && a.internal != b.internal);
        let (mut comm, mut config): (Comm, _) = (std::ptr::null_mut(), Config::non_blocking());
        // SAFETY: one rank joins alone; both outlive the call.
        let mut code = unsafe { (api.init_rank)(&raw mut comm, 1, a, 0, &raw mut config) };
        // A thread of the library works on it: it must have ended before the test does.
        while code == IN_PROGRESS {
            std::thread::sleep(POLL);
            // SAFETY: the communicator was made above, `code` outlives the call.
            unsafe { (api.async_error)(comm, &raw mut code) };
        }
        if code != SUCCESS {
            let e = api.check(code, "joining", std::ptr::null_mut()).unwrap_err().to_string();
            assert!(e.contains("joining failed with code") && e.contains("NCCL_DEBUG"), "{e}");
        }
    }
}
