//! What of nccl.h is used: types, functions, and their errors as text.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::Path;

use libloading::os::unix::Library as Dynamic;

use crate::collectives::{Error, Result};

/// Name of the library: the only one that the wheel of libtorch's CUDA install has.
pub(super) const LIBRARY: &str = "libnccl.so.2";

/// `ncclUniqueId` of nccl.h: 128 bytes, passed by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UniqueId {
    pub(super) internal: [u8; 128],
}

/// `ncclConfig_t` as of NCCL 2.18. Newer libraries read `size` and `version` and take their own defaults for later fields.
#[repr(C)]
pub(super) struct Config {
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
    pub(super) fn non_blocking() -> Self {
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

pub(super) type Comm = *mut c_void;
pub(super) type Stream = *mut c_void;

/// `ncclSuccess` and `ncclInProgress` of `ncclResult_t`.
pub(super) const SUCCESS: c_int = 0;
pub(super) const IN_PROGRESS: c_int = 7;

/// The functions of nccl.h that are used, with its signatures; results are `ncclResult_t`.
pub(super) struct Api {
    version: unsafe extern "C" fn(*mut c_int) -> c_int,
    unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    pub(super) init_rank:
        unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int, *mut Config) -> c_int,
    pub(super) async_error: unsafe extern "C" fn(Comm, *mut c_int) -> c_int,
    pub(super) all_reduce: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        c_int,
        c_int,
        Comm,
        Stream,
    ) -> c_int,
    pub(super) abort: unsafe extern "C" fn(Comm) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    last_error: unsafe extern "C" fn(Comm) -> *const c_char,
}

impl Api {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let name = path.display();
        let hint = "hint: it comes with the CUDA install of libtorch (make setup on a machine with an NVIDIA driver)";
        // SAFETY: NCCL's initialisers have no preconditions.
        let library = unsafe { Dynamic::new(path) }
            .map_err(|e| Error::Failed(format!("cannot open NCCL ({name}): {e}\n{hint}")))?;
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: the field's type is the function's signature in nccl.h, unchanged since it was introduced.
                *unsafe { library.get($name) }.map_err(|e| {
                    let function = String::from_utf8_lossy(&$name[..$name.len() - 1]);
                    Error::Failed(format!("{name} has no function {function}: {e}\nhint: NCCL 2.18 or newer is needed"))
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
    pub(super) fn version(&self) -> Result<String> {
        let mut v = 0;
        // SAFETY: `v` outlives the call.
        let code = unsafe { (self.version)(&raw mut v) };
        self.check(code, "reading the version", std::ptr::null_mut())?;
        Ok(format!("{}.{}.{}", v / 10000, v / 100 % 100, v % 100))
    }

    pub(super) fn id(&self) -> Result<UniqueId> {
        let mut id = UniqueId { internal: [0; 128] };
        // SAFETY: `id` outlives the call.
        self.check(unsafe { (self.unique_id)(&raw mut id) }, "making an id", std::ptr::null_mut())?;
        Ok(id)
    }

    pub(super) fn check(&self, code: c_int, doing: &str, comm: Comm) -> Result<()> {
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
        Err(Error::Failed(format!(
            "NCCL: {doing} failed with code {code}: {text}{detail}\nhint: NCCL_DEBUG=INFO tells more"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_an_error_with_a_hint() {
        let e = Api::open(Path::new("/nowhere/libnccl.so.2"))
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default();
        assert!(e.contains("/nowhere/libnccl.so.2") && e.contains("hint:"), "{e}");
    }

    #[test]
    fn a_library_without_the_functions_is_named() {
        // Any shared library that is not NCCL.
        let e = Api::open(Path::new("libc.so.6")).err().map(|e| e.to_string()).unwrap_or_default();
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
}
