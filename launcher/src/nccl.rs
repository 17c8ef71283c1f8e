//! All-reduce in device memory over NCCL. The library is opened at run time (the copy that libtorch's CUDA
//! half has loaded, by its name), so that a build needs no CUDA and one binary serves machines with and without GPUs.
//! Everything that is not device memory goes to the communicator underneath, which also carries NCCL's id.
//!
//! The communicator is non-blocking: no call waits inside the library, every wait here has a deadline, and an abort from
//! the watchdog's thread meets no thread inside a call (pain 3).

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use libloading::os::unix::Library as Dynamic;

use crate::collectives::{Buffer, Collectives, Error, Memory, Number, Op, Result};

/// Name of the library: the only one that the wheel of libtorch's CUDA install has.
const LIBRARY: &str = "libnccl.so.2";
/// What joining may take: large jobs open thousands of connections.
const JOIN: Duration = Duration::from_mins(5);
const POLL: Duration = Duration::from_millis(2);
/// Up to here a wait does not sleep.
const SPIN: Duration = Duration::from_millis(5);

/// `ncclUniqueId` of nccl.h: 128 bytes, passed by value.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId {
    internal: [u8; 128],
}

/// `ncclConfig_t` as of NCCL 2.18. Newer libraries read `size` and `version` and take their own defaults for later fields.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

/// `NCCL_CONFIG_UNDEF_INT`.
const UNDEFINED: c_int = c_int::MIN;

impl Config {
    /// `NCCL_CONFIG_INITIALIZER` with `blocking = 0`.
    fn non_blocking() -> Self {
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: 21_800,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: UNDEFINED,
            net_name: std::ptr::null(),
            split_share: UNDEFINED,
        }
    }
}

type Comm = *mut c_void;
type Stream = *mut c_void;

/// `ncclSuccess` and `ncclInProgress` of `ncclResult_t`.
const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;

/// The functions of nccl.h that are used, with its signatures; results are `ncclResult_t`.
struct Api {
    version: unsafe extern "C" fn(*mut c_int) -> c_int,
    unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    init_rank: unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int, *mut Config) -> c_int,
    async_error: unsafe extern "C" fn(Comm, *mut c_int) -> c_int,
    all_reduce: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        c_int,
        c_int,
        Comm,
        Stream,
    ) -> c_int,
    abort: unsafe extern "C" fn(Comm) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    last_error: unsafe extern "C" fn(Comm) -> *const c_char,
}

impl Api {
    fn open(path: &Path) -> Result<Self> {
        let name = path.display();
        let hint = "hint: it comes with the CUDA install of libtorch (make setup on a machine with an NVIDIA driver)";
        // SAFETY: NCCL's initialisers have no preconditions.
        let library = unsafe { Dynamic::new(path) }
            .map_err(|e| Error(format!("cannot open NCCL ({name}): {e}\n{hint}")))?;
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: the field's type is the function's signature in nccl.h, unchanged since it was introduced.
                *unsafe { library.get($name) }.map_err(|e| {
                    let function = String::from_utf8_lossy(&$name[..$name.len() - 1]);
                    Error(format!("{name} has no function {function}: {e}\nhint: NCCL 2.18 or newer is needed"))
                })?
            };
        }
        let api = Self {
            version: symbol!(b"ncclGetVersion\0"),
            unique_id: symbol!(b"ncclGetUniqueId\0"),
            init_rank: symbol!(b"ncclCommInitRankConfig\0"),
            async_error: symbol!(b"ncclCommGetAsyncError\0"),
            all_reduce: symbol!(b"ncclAllReduce\0"),
            abort: symbol!(b"ncclCommAbort\0"),
            error_string: symbol!(b"ncclGetErrorString\0"),
            last_error: symbol!(b"ncclGetLastError\0"),
        };
        // Loaded for the rest of the process: threads of its own may still run in it.
        std::mem::forget(library);
        Ok(api)
    }

    /// "2.28.9".
    fn version(&self) -> Result<String> {
        let mut v = 0;
        // SAFETY: `v` outlives the call.
        self.check(
            unsafe { (self.version)(&raw mut v) },
            "reading the version",
            std::ptr::null_mut(),
        )?;
        Ok(format!("{}.{}.{}", v / 10000, v / 100 % 100, v % 100))
    }

    fn id(&self) -> Result<UniqueId> {
        let mut id = UniqueId { internal: [0; 128] };
        // SAFETY: `id` outlives the call.
        self.check(unsafe { (self.unique_id)(&raw mut id) }, "making an id", std::ptr::null_mut())?;
        Ok(id)
    }

    fn check(&self, code: c_int, doing: &str, comm: Comm) -> Result<()> {
        if code == SUCCESS {
            return Ok(());
        }
        // SAFETY: both functions return C strings that live on; the second takes a null communicator, too.
        let texts = unsafe { [(self.error_string)(code), (self.last_error)(comm)] };
        // SAFETY: as above.
        let read =
            |p: *const c_char| unsafe { CStr::from_ptr(p) }.to_string_lossy().trim().to_owned();
        let [text, detail] = texts.map(|p| if p.is_null() { String::new() } else { read(p) });
        let detail = if detail.is_empty() { detail } else { format!(" ({detail})") };
        Err(Error(format!(
            "NCCL: {doing} failed with code {code}: {text}{detail}\nhint: NCCL_DEBUG=INFO tells more"
        )))
    }
}

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
            Err(Error(String::from_utf8_lossy(&text).into_owned()))
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
                    return Err(Error(format!("NCCL: {doing} took more than {} s", JOIN.as_secs())));
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
        // NCCL's own abort may hang (pain 3) and adds nothing: the process ends, and with it its communicator.
        self.base.abort(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_an_error_with_a_hint() {
        let e =
            Api::open(Path::new("/nowhere/libnccl.so.2")).err().map(|e| e.0).unwrap_or_default();
        assert!(e.contains("/nowhere/libnccl.so.2") && e.contains("hint:"), "{e}");
    }

    #[test]
    fn a_library_without_the_functions_is_named() {
        // Any shared library that is not NCCL.
        let e = Api::open(Path::new("libc.so.6")).err().map(|e| e.0).unwrap_or_default();
        assert!(
            e.contains("libc.so.6 has no function ncclGetVersion") && e.contains("2.18"),
            "{e}"
        );
    }

    #[test]
    fn the_configuration_has_the_layout_of_nccl_h() {
        // tests/nccl_abi.c holds the same numbers against the header.
        assert_eq!(size_of::<Config>(), 48);
        assert_eq!(std::mem::offset_of!(Config, blocking), 16);
        assert_eq!(std::mem::offset_of!(Config, net_name), 32);
        assert_eq!(size_of::<UniqueId>(), 128);
    }

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
            Err(e) => return assert!(e.0.contains("hint:"), "{e}"),
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
            let e = api.check(code, "joining", std::ptr::null_mut()).unwrap_err().0;
            assert!(e.contains("joining failed with code") && e.contains("NCCL_DEBUG"), "{e}");
        }
    }
}
