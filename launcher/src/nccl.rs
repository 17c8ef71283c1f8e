//! All-reduce in device memory over NCCL. The library is opened at run time (the copy that libtorch's CUDA
//! half has loaded, by its name), so that a build needs no CUDA and one binary serves machines with and without GPUs.
//! Everything that is not device memory goes to the communicator underneath, which also carries NCCL's id.
//!
//! The communicator is non-blocking: no call waits inside the library, every wait here has a deadline, and an abort from
//! the watchdog's thread meets no thread inside a call.

mod api;

use std::ffi::{c_int, c_void};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use self::api::{Api, Comm, Config, IN_PROGRESS, LIBRARY, SUCCESS, UniqueId};
use crate::collectives::{Buffer, Collectives, Error, Memory, Number, Op, Result};

/// What joining may take: large jobs open thousands of connections.
const JOIN: Duration = Duration::from_mins(5);
const POLL: Duration = Duration::from_millis(2);
/// Up to here a wait does not sleep.
const SPIN: Duration = Duration::from_millis(5);

/// Version of the NCCL on this machine, as "2.28.9"; `None` where there is none.
pub fn version() -> Option<String> {
    Api::open(Path::new(LIBRARY)).ok()?.version().ok()
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

/// The opened library.
pub struct Library(Api);

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NCCL")
    }
}

impl Library {
    /// Opens it on all ranks of `base`, or on none: one that gave up alone would leave the others waiting.
    ///
    /// # Errors
    /// Every rank gets the same text: which ranks have no NCCL, and why.
    pub fn open_on_all(base: &dyn Collectives) -> Result<Self> {
        let api = Api::open(Path::new(LIBRARY));
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

/// NCCL for device buffers over another communicator for all else.
pub struct Nccl {
    api: Api,
    comm: Comm,
    base: Arc<dyn Collectives>,
    stream: Box<dyn SideStream>,
    /// The communicator was given up; nobody may use it again.
    dead: Mutex<bool>,
}

// SAFETY: NCCL's calls on one communicator may come from any thread, one at a time, which the trait asks of its callers;
// `ncclCommGetAsyncError` and `ncclCommAbort` are meant for another thread beside them.
unsafe impl Send for Nccl {}
// SAFETY: as above.
unsafe impl Sync for Nccl {}

impl Nccl {
    /// Joins all ranks of `base` into one NCCL communicator. This rank's CUDA device must be current.
    ///
    /// # Errors
    /// An initialisation that failed or took too long: the caller ends the job, since others may wait inside NCCL.
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
        // SAFETY: `comm` and `config` outlive the call; every rank of `base` makes it with the same id and size.
        let code = unsafe {
            (api.init_rank)(
                &raw mut comm,
                base.size() as c_int,
                all,
                base.rank() as c_int,
                &raw mut config,
            )
        };
        let nccl = Self { api, comm, base, stream, dead: Mutex::new(false) };
        if code == IN_PROGRESS {
            nccl.settle("joining the ranks")?;
        } else {
            nccl.api.check(code, "joining the ranks", comm)?;
        }
        Ok(nccl)
    }

    /// Waits until the communicator has done what it was asked in the background.
    fn settle(&self, doing: &str) -> Result<()> {
        let began = Instant::now();
        loop {
            let mut state = SUCCESS;
            // SAFETY: the communicator is alive, `state` outlives the call.
            let code = unsafe { (self.api.async_error)(self.comm, &raw mut state) };
            self.api.check(code, doing, self.comm)?;
            match state {
                // Enqueueing takes microseconds, and backward waits for it; joining takes seconds.
                IN_PROGRESS if began.elapsed() < SPIN => std::thread::yield_now(),
                IN_PROGRESS if began.elapsed() < JOIN => std::thread::sleep(POLL),
                IN_PROGRESS => {
                    return Err(Error::Failed(format!(
                        "NCCL: {doing} took more than {} s",
                        JOIN.as_secs()
                    )));
                }
                code => return self.api.check(code, doing, self.comm),
            }
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
        // SAFETY: the caller vouches for the buffer until the sum is finished.
        let code =
            unsafe { (self.api.all_reduce)(ptr, ptr, buffer.count, kind, op, self.comm, stream) };
        // A thread of the library enqueues it, and opens connections before the first.
        if code == IN_PROGRESS {
            self.settle("all-reduce")
        } else {
            self.api.check(code, "all-reduce", self.comm)
        }
    }

    fn give_up(&self) {
        let mut dead = self.dead.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut dead, true) && !self.comm.is_null() {
            // Abort, not destroy: destroy waits for peers, which may be gone.
            // SAFETY: made by `ncclCommInitRankConfig`, and not used again.
            unsafe { (self.api.abort)(self.comm) };
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
        format!("NCCL {} over {}", self.api.version().unwrap_or_default(), self.base.name())
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
        // Held while the communicator is being given up, which may take long: there is nothing to look at then.
        let Ok(dead) = self.dead.try_lock() else { return Ok(()) };
        if *dead {
            return Ok(());
        }
        let mut state = SUCCESS;
        // SAFETY: the communicator is alive until `give_up`, `state` outlives the call.
        let code = unsafe { (self.api.async_error)(self.comm, &raw mut state) };
        let state = if code == SUCCESS { state } else { code };
        if state == IN_PROGRESS {
            Ok(())
        } else {
            self.api.check(state, "a collective in the background", self.comm)
        }
    }

    fn leave(&self) {
        self.give_up();
        self.base.leave();
    }

    fn abort(&self, code: i32) -> ! {
        // NCCL's own abort may hang and adds nothing: the process ends, and with it its communicator.
        self.base.abort(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a GPU this is as far as NCCL goes: it opens, knows its version, makes ids, and refuses to join in words.
    #[test]
    fn the_real_library_where_there_is_one() {
        let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
            || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache"),
            std::path::PathBuf::from,
        );
        // `tools/setup.sh tests` brings it; elsewhere the system's.
        let fetched = cache.join("dw/nccl-2.28.9/nvidia/nccl/lib").join(LIBRARY);
        let api = match Api::open(if fetched.is_file() { &fetched } else { Path::new(LIBRARY) }) {
            Ok(api) => api,
            Err(e) => return assert!(e.to_string().contains("hint:"), "{e}"),
        };
        assert!(api.version().unwrap().starts_with("2."));
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
