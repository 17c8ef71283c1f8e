//! Backend for device memory over NCCL. It uses the NCCL library that libtorch's CUDA libraries
//! have loaded, found at run time: a build needs no CUDA, and one binary serves machines with and
//! without GPUs. Host memory is reduced by a second backend (MPI), which also broadcasts NCCL's id.
//!
//! The communicator is non-blocking: no call waits inside the library for a peer, and every wait
//! here has a deadline. NCCL allows one thread at a time on a communicator, and even
//! `ncclCommGetAsyncError` modifies it: it completes the pending group of a non-blocking
//! communicator. A mutex therefore protects the communicator; the watchdog only tries to lock it.

mod api;

use std::ffi::{c_int, c_void};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use dw_base::text::shown;
use dw_base::{Error, Result, host};

use self::api::{Api, Comm, Config, IN_PROGRESS, SUCCESS, UniqueId};
use super::collectives::{Buffer, Collectives, Memory, Number, Op};

/// Timeout of joining, and of every other wait: large jobs open thousands of connections.
const TIMEOUT: Duration = Duration::from_mins(5);
const POLL: Duration = Duration::from_millis(2);
/// Time for which a wait yields instead of sleeping.
const SPIN: Duration = Duration::from_millis(5);
/// Time that [`Nccl::leave`] waits for another thread's call. The watchdog's takes microseconds.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The NCCL library that libtorch's CUDA libraries have loaded into this process. Displayed as
/// "2.28.9 (/path/libnccl.so.2)".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Version, such as "2.28.9".
    pub version: String,
    /// File of the library.
    pub path: PathBuf,
}

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.version, shown(&self.path.to_string_lossy()))
    }
}

/// The NCCL library in this process; `None` if libtorch's CUDA libraries have not been opened yet,
/// or do not use NCCL. Loads nothing.
pub fn loaded() -> Option<Loaded> {
    let origin = api::origin_of_loaded()?;
    Some(Loaded { version: origin.version(), path: origin.path })
}

/// Version of the NCCL library in this process, such as "2.28.9"; see [`loaded`].
pub fn version() -> Option<String> {
    loaded().map(|l| l.version)
}

/// The CUDA stream that NCCL uses, with events that order it against the compute stream.
pub trait SideStream: Send + Sync {
    /// The stream's `cudaStream_t`.
    fn handle(&self) -> *mut c_void;
    /// Makes later work on this stream wait for the work enqueued on the compute stream.
    fn after_compute(&self);
    /// Makes later work on the compute stream wait for the work enqueued on this stream.
    fn before_compute(&self);
}

/// An opened NCCL library, 2.18 or newer.
pub struct Library(Api);

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NCCL")
    }
}

impl Library {
    /// Loads the library at `path`, for tests: the trainer uses libtorch's
    /// ([`Library::open_on_all`]).
    ///
    /// # Errors
    /// A library that does not exist, is not NCCL, or is older than 2.18.
    pub fn open(path: &Path) -> Result<Self> {
        Api::open(path).map(Self)
    }

    /// Opens the library that libtorch's CUDA libraries have loaded, on all ranks of `base` or on
    /// none: if a single rank failed, the others would wait for it. To be called after libtorch's
    /// CUDA libraries have been opened.
    ///
    /// # Errors
    /// Some ranks have no NCCL, or one older than 2.18. Every rank gets the same text, which lists
    /// them.
    pub fn open_on_all(base: &dyn Collectives) -> Result<Self> {
        let api = Api::loaded();
        let mine = api
            .as_ref()
            .err()
            .map(|e| format!("rank {} on {}: {e}", base.rank(), host::name()))
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
            Err(Error::Usage(String::from_utf8_lossy(&text).into_owned()))
        }
    }
}

/// The communicator; null after it was aborted.
struct Handle(Comm);

// SAFETY: any thread may call NCCL with a communicator, one at a time, which the mutex around the
// handle ensures.
unsafe impl Send for Handle {}

/// Locks a mutex; `None` if it stays locked for `limit`.
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

/// Backend that reduces device buffers over NCCL and leaves the rest to another backend.
pub struct Nccl {
    api: Api,
    /// Locked during every call that takes the communicator, and from the start of an all-reduce
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
    /// The initialisation failed or timed out. The caller must abort the job, since other ranks may
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
        // SAFETY: `comm` and `config` outlive the call; every rank of `base` passes the same id and
        // size.
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
        nccl.wait(&nccl.lock(), code, "joining the ranks")?;
        Ok(nccl)
    }

    /// Locks the communicator.
    fn lock(&self) -> MutexGuard<'_, Handle> {
        // A panic cannot have left a partial change: the handle is only ever replaced by null.
        self.comm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the asynchronous part of a call that returned `code`; `doing` is for errors.
    fn wait(&self, comm: &Handle, code: c_int, doing: &str) -> Result<()> {
        let began = Instant::now();
        let mut state = code;
        loop {
            match state {
                IN_PROGRESS if began.elapsed() > TIMEOUT => {
                    let limit = TIMEOUT.as_secs();
                    return Err(Error::Peer(format!("NCCL: {doing} timed out after {limit} s")));
                }
                // Enqueueing takes microseconds, and backward waits for it; joining takes seconds.
                IN_PROGRESS if began.elapsed() < SPIN => std::thread::yield_now(),
                IN_PROGRESS => std::thread::sleep(POLL),
                code => return self.api.check(code, doing, comm.0),
            }
            // SAFETY: the communicator is valid and locked by this thread; `state` outlives the
            // call.
            let code = unsafe { (self.api.async_error)(comm.0, &raw mut state) };
            self.api.check(code, doing, comm.0)?;
        }
    }

    /// Enqueues an all-reduce after the work on the compute stream that produces the buffer.
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
            return Err(Error::Bug(
                "NCCL: an all-reduce after the communicator was aborted".into(),
            ));
        }
        // SAFETY: the caller guarantees a valid buffer until the sum is finished.
        let code =
            unsafe { (self.api.all_reduce)(ptr, ptr, buffer.count, kind, op, comm.0, stream) };
        // A thread of the library opens connections before the first all-reduce, then enqueues it.
        self.wait(&comm, code, "all-reduce")
    }

    /// Aborts the communicator.
    fn abort_communicator(&self) {
        // With a timeout: a thread that hangs in the library may be the watchdog's, and then
        // nothing else would end the wait.
        let Some(mut comm) = lock_within(&self.comm, LEAVE_TIMEOUT) else {
            let limit = LEAVE_TIMEOUT.as_secs();
            tracing::warn!(
                "NCCL: another thread has been inside the library for more than {limit} s: exiting \
                 without aborting the communicator"
            );
            return;
        };
        let handle = std::mem::replace(&mut comm.0, std::ptr::null_mut());
        if !handle.is_null() {
            // Abort, not destroy: destroy waits for peers, which may be gone.
            // SAFETY: created by `ncclCommInitRankConfig`; no other thread uses it now or later.
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
        // SAFETY: the caller upholds the contract.
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
        // SAFETY: the caller upholds the contract.
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
        // Locked by a thread inside the library: that thread gets the error itself, and the
        // deadline of its collective covers a call that hangs.
        let Ok(comm) = self.comm.try_lock() else { return Ok(()) };
        if comm.0.is_null() {
            return Ok(());
        }
        let mut state = SUCCESS;
        // SAFETY: the communicator is valid and locked by this thread; `state` outlives the call.
        let code = unsafe { (self.api.async_error)(comm.0, &raw mut state) };
        let state = if code == SUCCESS { state } else { code };
        if state == IN_PROGRESS {
            Ok(())
        } else {
            self.api.check(state, "an asynchronous collective", comm.0)
        }
    }

    fn leave(&self) {
        self.abort_communicator();
        self.base.leave();
    }

    fn abort(&self, code: i32) -> ! {
        // NCCL's own abort may hang and is not needed: the communicator ends with the process.
        self.base.abort(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locking_times_out() {
        let mutex = Mutex::new(1);
        let taken = mutex.lock().unwrap();
        assert!(lock_within(&mutex, Duration::from_millis(10)).is_none());
        drop(taken);
        assert!(lock_within(&mutex, Duration::ZERO).is_some());
    }

    /// All that works without a GPU: opening the library, its version, ids, and a readable error
    /// from joining.
    #[test]
    fn real_library_opens_and_fails_to_join_without_a_gpu() {
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
        // SAFETY: a single rank joins; both outlive the call.
        let mut code = unsafe { (api.init_rank)(&raw mut comm, 1, a, 0, &raw mut config) };
        // A thread of the library uses `comm` until the call is complete.
        while code == IN_PROGRESS {
            std::thread::sleep(POLL);
            // SAFETY: the communicator was created above; `code` outlives the call.
            unsafe { (api.async_error)(comm, &raw mut code) };
        }
        if code != SUCCESS {
            let e = api.check(code, "joining", std::ptr::null_mut()).unwrap_err().to_string();
            assert!(e.contains("NCCL: joining failed") && e.contains("hint: "), "{e}");
        }
    }
}
