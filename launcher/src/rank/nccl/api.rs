//! Bindings to the used part of nccl.h: types, functions and error texts. The library is opened at
//! run time.

use std::ffi::{CStr, OsStr, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use dw_base::text::with_causes;
use dw_base::{Error, Result};
use libloading::os::unix::{Library as Dynamic, RTLD_NOW};

/// Soname of the library, on which libtorch's CUDA libraries depend.
pub(super) const LIBRARY: &str = "libnccl.so.2";

/// Oldest supported version, as `ncclGetVersion` returns it: the first with all fields of
/// [`Config`].
const OLDEST: c_int = 21_800;

const HINT: &str = "hint: NCCL comes with the CUDA install of libtorch (`make setup` on a machine \
                    with an NVIDIA driver, or DW_CUDA=1 make setup)";

/// `ncclUniqueId`: 128 bytes, passed by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UniqueId {
    pub(super) internal: [u8; 128],
}

/// `ncclConfig_t` as of NCCL 2.18. Newer libraries read `size` and `version` and use their own
/// defaults for later fields.
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
            version: OLDEST as c_uint,
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

/// Version and file of a library.
pub(super) struct Origin {
    number: c_int,
    /// Absolute path without symbolic links; empty if the dynamic loader does not have it.
    pub(super) path: PathBuf,
}

impl Origin {
    /// Version and file of an opened library; `name` is for errors.
    fn of(library: &Dynamic, name: &str) -> Result<Self> {
        type GetVersion = unsafe extern "C" fn(*mut c_int) -> c_int;
        // SAFETY: the function has had this signature since NCCL 2.0.
        let get: GetVersion = *unsafe { library.get(b"ncclGetVersion\0") }
            .map_err(|e| missing(name, "ncclGetVersion", &e))?;
        let mut number = 0;
        // SAFETY: `number` outlives the call.
        let code = unsafe { get(&raw mut number) };
        if code != SUCCESS {
            return Err(Error::Usage(format!("{name}: ncclGetVersion failed with code {code}")));
        }
        Ok(Self { number, path: file_of(get as *const c_void).unwrap_or_default() })
    }

    /// The version as text, such as "2.28.9".
    pub(super) fn version(&self) -> String {
        let v = self.number;
        // Up to 2.8: major * 1000 + minor * 100 + patch; since then the major version is * 10000.
        let (major, rest) =
            if v < 10_000 { (v / 1000, v % 1000) } else { (v / 10_000, v % 10_000) };
        format!("{major}.{}.{}", rest / 100, rest % 100)
    }

    /// Rejects versions older than [`OLDEST`].
    fn check(&self) -> Result<()> {
        if self.number >= OLDEST {
            return Ok(());
        }
        Err(Error::Usage(format!(
            "NCCL {} ({}) is too old: expected 2.18 or newer\nhint: LD_LIBRARY_PATH or LD_PRELOAD \
             (a cluster's module) may override the newer one of libtorch's install",
            self.version(),
            self.path.display()
        )))
    }
}

/// Error for a library without a function.
fn missing(name: &str, function: &str, e: &libloading::Error) -> Error {
    Error::Usage(format!(
        "{name} has no function {function}: {}\nhint: NCCL 2.18 or newer is needed",
        with_causes(e)
    ))
}

/// File that a function was loaded from.
fn file_of(function: *const c_void) -> Option<PathBuf> {
    // SAFETY: a C struct of pointers and integers, for which zeros are valid.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: `info` outlives the call, which does not dereference the address.
    let found = unsafe { libc::dladdr(function, &raw mut info) } != 0;
    if !found || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: a C string that is valid while the library is loaded.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    let path = Path::new(OsStr::from_bytes(name.to_bytes()));
    Some(path.canonicalize().unwrap_or_else(|_| path.to_owned()))
}

/// The NCCL library that is already loaded into this process. Does not load one: an NCCL opened by
/// name before libtorch's CUDA libraries would be used instead of their own, even if the versions
/// differ.
fn already_loaded() -> Option<Dynamic> {
    // SAFETY: with RTLD_NOLOAD no initialisers run.
    unsafe { Dynamic::open(Some(LIBRARY), RTLD_NOW | libc::RTLD_NOLOAD) }.ok()
}

/// Version and file of the NCCL library that is already loaded into this process.
pub(super) fn origin_of_loaded() -> Option<Origin> {
    Origin::of(&already_loaded()?, LIBRARY).ok()
}

/// The used functions of nccl.h with their signatures; results are `ncclResult_t`.
pub(super) struct Api {
    pub(super) origin: Origin,
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
    /// The library that was loaded as a dependency of libtorch's CUDA libraries.
    pub(super) fn loaded() -> Result<Self> {
        let library = already_loaded().ok_or_else(|| {
            Error::Usage(format!("libtorch's CUDA half has not loaded {LIBRARY}\n{HINT}"))
        })?;
        Self::of(library, LIBRARY)
    }

    /// Loads the library at `path`.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        // SAFETY: NCCL's initialisers have no preconditions.
        let library = unsafe { Dynamic::new(path) }.map_err(|e| {
            Error::Usage(format!("cannot open NCCL ({name}): {}\n{HINT}", with_causes(&e)))
        })?;
        Self::of(library, &name)
    }

    fn of(library: Dynamic, name: &str) -> Result<Self> {
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: the field's type is the function's signature in nccl.h, unchanged since
                // it was introduced.
                *unsafe { library.get(concat!($name, "\0")) }
                    .map_err(|e| missing(name, $name, &e))?
            };
        }
        let origin = Origin::of(&library, name)?;
        origin.check()?;
        let api = Self {
            origin,
            unique_id: symbol!("ncclGetUniqueId"),
            init_rank: symbol!("ncclCommInitRankConfig"),
            async_error: symbol!("ncclCommGetAsyncError"),
            all_reduce: symbol!("ncclAllReduce"),
            abort: symbol!("ncclCommAbort"),
            error_string: symbol!("ncclGetErrorString"),
            last_error: symbol!("ncclGetLastError"),
        };
        // Never unloaded: threads of the library may run until the process exits.
        std::mem::forget(library);
        Ok(api)
    }

    /// A new id for a communicator.
    pub(super) fn id(&self) -> Result<UniqueId> {
        let mut id = UniqueId { internal: [0; 128] };
        // SAFETY: `id` outlives the call.
        let code = unsafe { (self.unique_id)(&raw mut id) };
        self.check(code, "creating an id", std::ptr::null_mut())?;
        Ok(id)
    }

    /// Converts a result code. No other thread may be in a call with `comm`, which may be null.
    pub(super) fn check(&self, code: c_int, doing: &str, comm: Comm) -> Result<()> {
        if code == SUCCESS {
            return Ok(());
        }
        // SAFETY: both return C strings that stay valid; the second accepts a null communicator.
        let texts = unsafe { [(self.error_string)(code), (self.last_error)(comm)] };
        // SAFETY: as above.
        let read =
            |p: *const c_char| unsafe { CStr::from_ptr(p) }.to_string_lossy().trim().to_owned();
        let [text, detail] = texts.map(|p| if p.is_null() { String::new() } else { read(p) });
        let detail = if detail.is_empty() { detail } else { format!(" ({detail})") };
        let text = format!("NCCL: {doing} failed with code {code}: {text}{detail}");
        Err(match Error::from_library(&text) {
            // An error that is not about this machine is about its peers or the network between
            // them.
            Error::Bug(text) => Error::Peer(format!("{text}\nhint: NCCL_DEBUG=INFO logs details")),
            e => e,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_library_is_an_error_with_a_hint() {
        let e = Api::open(Path::new("/nowhere/libnccl.so.2"))
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default();
        assert!(e.contains("/nowhere/libnccl.so.2") && e.contains("hint:"), "{e}");
    }

    #[test]
    fn library_without_the_functions_is_named() {
        // Any shared library that is not NCCL.
        let e = Api::open(Path::new("libc.so.6")).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(
            e.contains("libc.so.6 has no function ncclGetVersion") && e.contains("2.18"),
            "{e}"
        );
    }

    #[test]
    fn versions_are_parsed_and_old_ones_rejected() {
        let origin = |number| Origin { number, path: PathBuf::from("/lib/libnccl.so.2") };
        for (number, text, ok) in
            [(2_804, "2.8.4", false), (21_705, "2.17.5", false), (21_800, "2.18.0", true)]
        {
            let origin = origin(number);
            assert_eq!((origin.version().as_str(), origin.check().is_ok()), (text, ok));
        }
        let e = origin(21_705).check().unwrap_err().to_string();
        assert!(e.contains("NCCL 2.17.5 (/lib/libnccl.so.2)") && e.contains("2.18"), "{e}");
    }

    #[test]
    fn config_has_the_layout_of_nccl_h() {
        // tests/nccl_abi/abi.c compares the same numbers with the header.
        assert_eq!(size_of::<Config>(), 48);
        assert_eq!(std::mem::offset_of!(Config, blocking), 16);
        assert_eq!(std::mem::offset_of!(Config, net_name), 32);
        assert_eq!(size_of::<UniqueId>(), 128);
    }
}
