//! libtorch's CUDA half, opened at run time so that one binary serves machines with and without GPUs, and
//! the few functions of the CUDA runtime that `tch` lacks.

use std::ffi::{CStr, c_char, c_int};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use dw_base::text::with_causes;
use dw_launch::abort::{Failure, classify};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::{Error, Result};
use crate::torch;

/// Whether libtorch's CUDA half was opened; set once in a process.
static OPENED: OnceLock<std::result::Result<(), String>> = OnceLock::new();

/// Settings of libtorch's CUDA allocator, its present name and the older one.
const ALLOCATOR: [&str; 2] = ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"];

/// Opens libtorch's CUDA half. A second call does nothing.
///
/// Images of many sizes fragment the allocator's memory unless its segments can grow, so that is switched
/// on, unless the user has chosen settings of the allocator.
pub fn open() {
    OPENED.get_or_init(|| {
        if ALLOCATOR.iter().all(|name| std::env::var_os(name).is_none()) {
            // SAFETY: called first in `main`: no other thread reads the environment.
            unsafe { std::env::set_var(ALLOCATOR[1], "expandable_segments:True") };
        }
        // SAFETY: libtorch_cuda registers itself with the libtorch that is loaded already; both are one
        // pinned release.
        match unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) } {
            Ok(library) => {
                // Loaded for the rest of the process: its registrations cannot be taken back.
                std::mem::forget(library);
                Ok(())
            }
            Err(e) => Err(format!("libtorch's CUDA half cannot be opened: {}", with_causes(&e))),
        }
    });
}

const INSTALL: &str = "hint: `make setup` on a machine with an NVIDIA driver (580 or newer), or `DW_CUDA=1 make setup` on one without, \
                       installs libtorch's CUDA half";

/// Number of usable devices, at least 1.
///
/// # Errors
/// Why there is none (exit code 2), or that the GPU or its driver failed (4).
pub fn devices() -> Result<usize> {
    match OPENED.get() {
        None => return Err(Error::Usage(
            "libtorch's CUDA half was not opened at the start of the program: this is a bug in dw"
                .into(),
        )),
        Some(opened) => opened.clone().map_err(|why| Error::Usage(format!("{why}\n{INSTALL}")))?,
    }
    if !torch::sees_cuda() {
        return Err(Error::Usage(
            "libtorch looked for its CUDA half before that was opened: this is a bug in dw".into(),
        ));
    }
    match tch::Cuda::device_count() {
        count if count > 0 => Ok(count as usize),
        _ => Err(no_devices()),
    }
}

/// Why libtorch sees no device, by what the CUDA runtime says when it is asked for them.
fn no_devices() -> Error {
    type Count = unsafe extern "C" fn(*mut c_int) -> c_int;
    /// `cudaErrorInsufficientDriver`: a driver that is too old, or none.
    const DRIVER: c_int = 35;
    /// `cudaErrorNoDevice`: a machine, or a choice of visible devices, without a GPU; nothing has failed.
    const NO_DEVICE: c_int = 100;
    let mut count = 0;
    // SAFETY: the type is that of `cudaGetDeviceCount(int *)`.
    let get = unsafe { function::<Count>(b"cudaGetDeviceCount\0") };
    // SAFETY: the number outlives the call.
    let code = get.map_or(0, |get| unsafe { get(&raw mut count) });
    let text = match code {
        0 => String::new(),
        DRIVER if driver_version() == 0 => ": no NVIDIA driver is installed".to_owned(),
        code => format!(": {}", error_text(code)),
    };
    let text = format!("libtorch sees no CUDA device{text}");
    match classify(&text) {
        Some(Failure::Device) if code != NO_DEVICE => {
            Error::Device(format!("{text} (host {})", dw_launch::host()))
        }
        _ => Error::Usage(format!(
            "{text}\nhint: `nvidia-smi` shows the driver (580 or newer is needed) and the devices"
        )),
    }
}

/// The newest CUDA version that the driver serves, as 13000; 0 without a driver.
fn driver_version() -> c_int {
    type Version = unsafe extern "C" fn(*mut c_int) -> c_int;
    let mut version = 0;
    // SAFETY: the type is that of `cudaDriverGetVersion(int *)`.
    let get = unsafe { function::<Version>(b"cudaDriverGetVersion\0") };
    if let Ok(get) = get {
        // SAFETY: the number outlives the call; on failure it stays 0.
        unsafe { get(&raw mut version) };
    }
    version
}

/// A function of a library that is loaded with global symbols, as the CUDA runtime is with libtorch's CUDA half.
///
/// # Safety
/// `T` must be the function's type.
unsafe fn function<T: Copy>(name: &[u8]) -> std::result::Result<T, String> {
    // SAFETY: the caller vouches for the type; the library stays loaded (see `open`).
    unsafe { Library::this().get::<T>(name) }
        .map(|f| *f)
        .map_err(|e| format!("no CUDA runtime is loaded: {}", with_causes(&e)))
}

/// "CUDA error 46: CUDA-capable device(s) is/are busy or unavailable".
fn error_text(code: c_int) -> String {
    type Text = unsafe extern "C" fn(c_int) -> *const c_char;
    // SAFETY: `const char *cudaGetErrorString(cudaError_t)`.
    let get = unsafe { function::<Text>(b"cudaGetErrorString\0") };
    // SAFETY: no preconditions; a string literal of the runtime, or null.
    let text = get.map_or(std::ptr::null(), |get| unsafe { get(code) });
    if text.is_null() {
        return format!("CUDA error {code}");
    }
    // SAFETY: a C string that lives for ever.
    format!("CUDA error {code}: {}", unsafe { CStr::from_ptr(text) }.to_string_lossy())
}

/// Makes a device the calling thread's current one, for libraries beside libtorch (NCCL) too. Creates the
/// device's context, so this is where a device that another process holds, or a broken one, is noticed.
///
/// # Errors
/// The device cannot be used: it failed or is held by another process (exit code 4), has no memory left (5), or does
/// not exist (2).
pub fn set_current(index: usize) -> Result<()> {
    type Set = unsafe extern "C" fn(c_int) -> c_int;
    // SAFETY: `cudaSetDevice(int)`.
    let set = unsafe { function::<Set>(b"cudaSetDevice\0") }.map_err(Error::Usage)?;
    // SAFETY: no preconditions.
    match unsafe { set(index as c_int) } {
        0 => Ok(()),
        code => Err(failure(index, &error_text(code))),
    }
}

/// The error of a device that cannot be used, by the runtime's text.
fn failure(index: usize, text: &str) -> Error {
    let text = format!("CUDA device {index} of {} cannot be used: {text}", dw_launch::host());
    match classify(&text) {
        Some(Failure::Device) => Error::Device(text),
        Some(_) => {
            Error::Resources(format!("{text}\nhint: another process holds its memory (nvidia-smi)"))
        }
        None => Error::Usage(format!("{text}\nhint: `nvidia-smi` shows the device's state")),
    }
}

/// A device's address on this machine's PCI bus, as "0000:1B:00.0".
///
/// # Errors
/// The runtime has no address for it.
pub fn pci_address(index: usize) -> Result<String> {
    type Address = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
    let mut text = [0u8; 32];
    // SAFETY: `cudaDeviceGetPCIBusId(char *, int, int)`.
    let get = unsafe { function::<Address>(b"cudaDeviceGetPCIBusId\0") }.map_err(Error::Usage)?;
    // SAFETY: the buffer is as long as said.
    match unsafe { get(text.as_mut_ptr().cast(), text.len() as c_int, index as c_int) } {
        0 => {
            Ok(CStr::from_bytes_until_nul(&text).unwrap_or_default().to_string_lossy().into_owned())
        }
        code => Err(failure(index, &error_text(code))),
    }
}

/// Why a GPU is expected here; `None` where nothing says so, or where the user hides them all.
pub fn gpu_evidence() -> Option<String> {
    evidence(|path| Path::new(path).exists(), |name| std::env::var(name).ok())
}

/// Variables by which SLURM tells a job its GPUs.
const SLURM: [&str; 3] = ["SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE"];

fn evidence(exists: impl Fn(&str) -> bool, var: impl Fn(&str) -> Option<String>) -> Option<String> {
    if let Some(list) = var("CUDA_VISIBLE_DEVICES") {
        // An empty list, a number below 0 (CUDA's way to say none), or what SLURM writes for none.
        let list = list.trim();
        if list.is_empty() || list.starts_with('-') || list == "NoDevFiles" {
            return None;
        }
    }
    for name in SLURM {
        let none = |v: &String| v.is_empty() || (name == "SLURM_GPUS_ON_NODE" && v == "0");
        if let Some(value) = var(name).filter(|v| !none(v)) {
            return Some(format!("SLURM gave this job GPUs ({name}={value})"));
        }
    }
    let driver = "/dev/nvidiactl";
    exists(driver).then(|| format!("this machine has an NVIDIA driver ({driver})"))
}

/// The libraries of libtorch and CUDA that are loaded, by their real paths.
pub fn loaded_libraries() -> Vec<PathBuf> {
    const NAMES: [&str; 8] = [
        "libtorch",
        "libc10",
        "libcuda.",
        "libcudart",
        "libcudnn",
        "libcublas",
        "libnccl",
        "libnvrtc",
    ];
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut paths: Vec<PathBuf> =
        maps.lines().filter_map(|l| l.find('/').map(|at| PathBuf::from(&l[at..]))).collect();
    paths.retain(|p| {
        p.file_name()
            .is_some_and(|n| NAMES.iter().any(|name| n.to_string_lossy().starts_with(name)))
    });
    paths.sort();
    paths.dedup();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence_of(device_file: bool, vars: &[(&str, &str)]) -> Option<String> {
        evidence(|_| device_file, |name| vars.iter().find(|v| v.0 == name).map(|v| v.1.to_owned()))
    }

    #[test]
    fn a_gpu_is_expected_where_a_driver_or_slurm_shows_one() {
        assert_eq!(evidence_of(false, &[]), None);
        assert!(evidence_of(true, &[]).unwrap().contains("/dev/nvidiactl"));
        assert!(
            evidence_of(false, &[("SLURM_JOB_GPUS", "0")]).unwrap().contains("SLURM_JOB_GPUS=0"),
            "the GPU of number 0"
        );
        assert_eq!(evidence_of(false, &[("SLURM_GPUS_ON_NODE", "0")]), None);
        for hidden in ["", " ", "-1", "NoDevFiles"] {
            assert_eq!(
                evidence_of(true, &[("CUDA_VISIBLE_DEVICES", hidden)]),
                None,
                "hidden by `{hidden}`"
            );
        }
        assert!(evidence_of(true, &[("CUDA_VISIBLE_DEVICES", "0,1")]).is_some());
    }

    #[test]
    fn a_device_that_cannot_be_used_has_the_code_of_its_reason() {
        let code = |text: &str| failure(0, text).exit_code();
        assert_eq!(code("CUDA error 2: out of memory"), 5);
        assert_eq!(code("CUDA error 214: uncorrectable ECC error encountered"), 4);
        assert_eq!(code("CUDA error 101: invalid device ordinal"), 2);
    }

    #[test]
    fn libtorch_is_among_the_loaded_libraries() {
        let _ = tch::Tensor::zeros([1], (tch::Kind::Float, tch::Device::Cpu));
        assert!(loaded_libraries().iter().any(|p| p.to_string_lossy().contains("libtorch_cpu")));
    }
}
