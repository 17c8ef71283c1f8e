//! All-reduce in device memory over NCCL. The library is opened at run time (the copy that libtorch's CUDA
//! half has loaded, by its name), so that a build needs no CUDA and one binary serves machines with and without GPUs.
//! Everything that is not device memory goes to the communicator underneath, which also carries NCCL's id.

use std::ffi::{CStr, c_char, c_int, c_void};

use libloading::os::unix::Library;

use crate::collectives::{Buffer, Collectives, Error, Op, Result};

/// `ncclUniqueId` of nccl.h: 128 bytes, passed by value.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId {
    internal: [u8; 128],
}

type Comm = *mut c_void;
type Stream = *mut c_void;

/// The functions of nccl.h that are used, with its signatures; results are `ncclResult_t`, 0 is success.
struct Api {
    version: unsafe extern "C" fn(*mut c_int) -> c_int,
    unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    init_rank: unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int) -> c_int,
    all_reduce: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, Stream) -> c_int,
    abort: unsafe extern "C" fn(Comm) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    _library: Library,
}

/// `ncclFloat32` of `ncclDataType_t`.
const FLOAT32: c_int = 7;

impl Api {
    fn open() -> Result<Self> {
        let name = "libnccl.so.2";
        let hint = "hint: it comes with the CUDA install of libtorch (make setup on a machine with an NVIDIA driver)";
        // SAFETY: NCCL's initialisers have no preconditions.
        let library = unsafe { Library::new(name) }.map_err(|e| Error(format!("cannot open {name}: {e}\n{hint}")))?;
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: the field's type is the function's signature in nccl.h, stable since NCCL 2.2.
                *unsafe { library.get($name) }.map_err(|e| Error(format!("{name} lacks a function: {e}")))?
            };
        }
        Ok(Self {
            version: symbol!(b"ncclGetVersion\0"),
            unique_id: symbol!(b"ncclGetUniqueId\0"),
            init_rank: symbol!(b"ncclCommInitRank\0"),
            all_reduce: symbol!(b"ncclAllReduce\0"),
            abort: symbol!(b"ncclCommAbort\0"),
            error_string: symbol!(b"ncclGetErrorString\0"),
            _library: library,
        })
    }

    fn check(&self, code: c_int, doing: &str) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the function returns a static C string for any code.
        let text = unsafe { CStr::from_ptr((self.error_string)(code)) }.to_string_lossy();
        Err(Error(format!("NCCL: {doing} failed with code {code}: {text}")))
    }
}

/// Version of the NCCL on this machine, as "2.28.9"; `None` where there is none.
pub fn version() -> Option<String> {
    let api = Api::open().ok()?;
    let mut v = 0;
    // SAFETY: `v` outlives the call.
    api.check(unsafe { (api.version)(&raw mut v) }, "reading the version").ok()?;
    Some(format!("{}.{}.{}", v / 10000, v / 100 % 100, v % 100))
}

/// NCCL for device buffers over another communicator for all else.
pub struct Nccl {
    api: Api,
    comm: Comm,
    base: Box<dyn Collectives>,
}

impl Nccl {
    /// Joins all ranks of `base` into one NCCL communicator. This rank's CUDA device must be current.
    ///
    /// # Errors
    /// No NCCL on the machine, or an initialisation that failed.
    pub fn join(base: Box<dyn Collectives>) -> Result<Self> {
        // All ranks open the library or none goes on: one that gave up alone would leave the others waiting.
        let api = Api::open();
        let mut opened = [f64::from(u8::from(api.is_ok()))];
        base.all_reduce(&mut opened, Op::Min)?;
        let api = api?;
        if opened[0] == 0.0 {
            return Err(Error("another rank could not open NCCL".into()));
        }
        let mut id = UniqueId { internal: [0; 128] };
        // SAFETY: `id` outlives the call.
        let made = if base.rank() == 0 { unsafe { (api.unique_id)(&raw mut id) } } else { 0 };
        let bytes = base.broadcast_bytes(id.internal.to_vec())?;
        id.internal.copy_from_slice(&bytes);
        let mut comm: Comm = std::ptr::null_mut();
        let (size, rank) = (base.size() as c_int, base.rank() as c_int);
        // SAFETY: `comm` outlives the call; every rank of `base` makes it with the same id and size.
        let code = if made == 0 { unsafe { (api.init_rank)(&raw mut comm, size, id, rank) } } else { made };
        if let Err(e) = api.check(code, "joining the ranks") {
            // The others may be waiting inside NCCL: end them, too.
            tracing::error!("{e}");
            base.abort(4);
        }
        Ok(Self { api, comm, base })
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
        format!("NCCL {} over {}", version().unwrap_or_default(), self.base.name())
    }

    unsafe fn all_reduce_raw(&self, buffer: Buffer, op: Op) -> Result<()> {
        let Buffer::CudaF32 { ptr, count } = buffer else {
            // SAFETY: the caller's promise is passed on.
            return unsafe { self.base.all_reduce_raw(buffer, op) };
        };
        let op = match op {
            Op::Sum => 0,
            Op::Max => 2,
            Op::Min => 3,
        };
        // SAFETY: the caller vouches for the buffer. The null stream is the one libtorch computes on, so the sum
        // comes after the gradients and before whatever reads them.
        let code = unsafe { (self.api.all_reduce)(ptr.cast(), ptr.cast(), count, FLOAT32, op, self.comm, std::ptr::null_mut()) };
        self.api.check(code, "all-reduce")
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

    fn abort(&self, code: i32) -> ! {
        self.base.abort(code)
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        // Abort, not destroy: destroy waits for peers, which may be gone.
        // SAFETY: `comm` was made by `ncclCommInitRank` and is not used again.
        unsafe { (self.api.abort)(self.comm) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_an_error_with_a_hint() {
        match Api::open() {
            Ok(_) => assert!(version().is_some()),
            Err(e) => assert!(e.to_string().contains("libnccl.so.2") && e.to_string().contains("hint:"), "{e}"),
        }
    }
}
