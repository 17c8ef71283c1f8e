//! libtorch's CUDA library, opened at run time so that one binary runs on machines with and without
//! GPUs, and the few functions of the CUDA runtime that `tch` lacks.

use std::ffi::{CStr, c_char, c_int};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use dw_base::failure::{Failure, classify};
use dw_base::text::with_causes;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::{Error, Result};

/// Result of opening libtorch's CUDA library; set once per process.
static OPENED: OnceLock<std::result::Result<(), String>> = OnceLock::new();

/// Environment variables with settings of libtorch's CUDA allocator: the current name and the older
/// one.
const ALLOCATOR: [&str; 2] = ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"];

/// Opens libtorch's CUDA library. Further calls do nothing.
///
/// Also enables expandable segments in the CUDA allocator, unless the user has set its options:
/// images of many sizes fragment segments of fixed size.
pub fn open() {
    OPENED.get_or_init(|| {
        if ALLOCATOR.iter().all(|name| std::env::var_os(name).is_none()) {
            // SAFETY: called first in `main`, when no other thread exists that could read the
            // environment.
            unsafe { std::env::set_var(ALLOCATOR[1], "expandable_segments:True") };
        }
        // SAFETY: the library's initialisers register it with the libtorch that is loaded; both
        // are of one pinned release.
        match unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) } {
            Ok(library) => {
                // Never unloaded: its registrations cannot be undone.
                std::mem::forget(library);
                Ok(())
            }
            Err(e) => Err(format!("libtorch's CUDA library cannot be opened: {}", with_causes(&e))),
        }
    });
}

const INSTALL: &str = "hint: `make setup` on a machine with an NVIDIA driver (580 or newer), or \
                       `DW_CUDA=1 make setup` on one without, installs libtorch's CUDA library";

/// Number of usable CUDA devices, at least 1.
///
/// # Errors
/// There is none (exit code 2), or the GPU or its driver failed (exit code 4).
pub fn devices() -> Result<usize> {
    match OPENED.get() {
        None => {
            return Err(Error::Usage(
                "libtorch's CUDA library was not opened at program start: this is a bug in dw"
                    .into(),
            ));
        }
        Some(opened) => opened.clone().map_err(|why| Error::Usage(format!("{why}\n{INSTALL}")))?,
    }
    if !dw_torch::has_cuda_hooks() {
        return Err(Error::Usage(
            "libtorch was used before its CUDA library was opened: this is a bug in dw".into(),
        ));
    }
    match tch::Cuda::device_count() {
        count if count > 0 => Ok(count as usize),
        _ => Err(no_devices()),
    }
}

/// The error for "no CUDA device", with the cause that `cudaGetDeviceCount` reports.
fn no_devices() -> Error {
    type Count = unsafe extern "C" fn(*mut c_int) -> c_int;
    /// `cudaErrorInsufficientDriver`: no driver, or one that is too old.
    const DRIVER: c_int = 35;
    /// `cudaErrorNoDevice`: no GPU in the machine or among the visible devices; not a failure.
    const NO_DEVICE: c_int = 100;
    let mut count = 0;
    // SAFETY: `cudaError_t cudaGetDeviceCount(int *)`.
    let get = unsafe { function::<Count>(b"cudaGetDeviceCount\0") };
    // SAFETY: `count` outlives the call.
    let code = get.map_or(0, |get| unsafe { get(&raw mut count) });
    let text = match code {
        0 => String::new(),
        DRIVER if driver_version() == 0 => ": no NVIDIA driver is installed".to_owned(),
        code => format!(": {}", error_text(code)),
    };
    let text = format!("libtorch found no CUDA device{text}");
    match classify(&text) {
        Some(Failure::Device) if code != NO_DEVICE => {
            Error::Device(format!("{text} (host {})", dw_base::host::name()))
        }
        _ => Error::Usage(format!(
            "{text}\nhint: `nvidia-smi` shows the driver (580 or newer is needed) and the devices"
        )),
    }
}

/// Newest CUDA version that the driver supports, as 13000 for 13.0; 0 without a driver.
fn driver_version() -> c_int {
    type Version = unsafe extern "C" fn(*mut c_int) -> c_int;
    let mut version = 0;
    // SAFETY: `cudaError_t cudaDriverGetVersion(int *)`.
    let get = unsafe { function::<Version>(b"cudaDriverGetVersion\0") };
    if let Ok(get) = get {
        // SAFETY: `version` outlives the call; on failure it stays 0.
        unsafe { get(&raw mut version) };
    }
    version
}

/// Looks up a function in the libraries loaded with global symbols. The CUDA runtime is among them
/// once libtorch's CUDA library is open.
///
/// # Errors
/// The function is not found: no CUDA runtime is loaded.
///
/// # Safety
/// `T` must be the function's type.
unsafe fn function<T: Copy>(name: &[u8]) -> std::result::Result<T, String> {
    // SAFETY: the caller guarantees the type; the library is never unloaded (see `open`).
    unsafe { Library::this().get::<T>(name) }
        .map(|f| *f)
        .map_err(|e| format!("no CUDA runtime is loaded: {}", with_causes(&e)))
}

/// Number and text of a CUDA error, as
/// "CUDA error 46: CUDA-capable device(s) is/are busy or unavailable".
fn error_text(code: c_int) -> String {
    type Text = unsafe extern "C" fn(c_int) -> *const c_char;
    // SAFETY: `const char *cudaGetErrorString(cudaError_t)`.
    let get = unsafe { function::<Text>(b"cudaGetErrorString\0") };
    // SAFETY: no preconditions; returns a static string of the runtime, or null.
    let text = get.map_or(std::ptr::null(), |get| unsafe { get(code) });
    if text.is_null() {
        return format!("CUDA error {code}");
    }
    // SAFETY: a static C string.
    format!("CUDA error {code}: {}", unsafe { CStr::from_ptr(text) }.to_string_lossy())
}

/// Makes a device the calling thread's current one, also for other libraries (NCCL). This creates
/// the device's context, so a broken device, or one held by another process, is detected here.
///
/// # Errors
/// The device failed or is held by another process (exit code 4), has no memory left (5), or does
/// not exist (2).
pub fn set_current(index: usize) -> Result<()> {
    type Set = unsafe extern "C" fn(c_int) -> c_int;
    // SAFETY: `cudaError_t cudaSetDevice(int)`.
    let set = unsafe { function::<Set>(b"cudaSetDevice\0") }.map_err(Error::Usage)?;
    // SAFETY: no preconditions.
    match unsafe { set(index as c_int) } {
        0 => Ok(()),
        code => Err(failure(index, &error_text(code))),
    }
}

/// The error of an unusable device; its kind follows from the runtime's error text.
fn failure(index: usize, text: &str) -> Error {
    let text = format!("CUDA device {index} of {} cannot be used: {text}", dw_base::host::name());
    match classify(&text) {
        Some(Failure::Device) => Error::Device(text),
        Some(Failure::Threads) => Error::OutOfResources(text),
        Some(Failure::Memory) => Error::OutOfMemory(format!(
            "{text}\nhint: `nvidia-smi` lists the processes that use its memory"
        )),
        None => Error::Usage(format!("{text}\nhint: `nvidia-smi` shows the device's state")),
    }
}

/// Address of a device on this machine's PCI bus, as "0000:1B:00.0".
///
/// # Errors
/// The runtime reports no address, as for a device that does not exist.
pub fn pci_address(index: usize) -> Result<String> {
    type Address = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
    let mut text = [0u8; 32];
    // SAFETY: `cudaError_t cudaDeviceGetPCIBusId(char *, int, int)`.
    let get = unsafe { function::<Address>(b"cudaDeviceGetPCIBusId\0") }.map_err(Error::Usage)?;
    // SAFETY: the length passed is the buffer's.
    match unsafe { get(text.as_mut_ptr().cast(), text.len() as c_int, index as c_int) } {
        0 => {
            Ok(CStr::from_bytes_until_nul(&text).unwrap_or_default().to_string_lossy().into_owned())
        }
        code => Err(failure(index, &error_text(code))),
    }
}

/// The reason to expect a GPU in this job, as text for a message. `None` if there is no sign of
/// one, or the user has hidden all devices.
pub fn gpu_evidence() -> Option<String> {
    evidence(|path| Path::new(path).exists(), |name| std::env::var(name).ok())
}

/// Variables in which SLURM lists the GPUs of a job.
const SLURM: [&str; 3] = ["SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE"];

fn evidence(exists: impl Fn(&str) -> bool, var: impl Fn(&str) -> Option<String>) -> Option<String> {
    if let Some(list) = var("CUDA_VISIBLE_DEVICES") {
        // No devices: an empty list, a negative number (CUDA's convention), or SLURM's NoDevFiles.
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

/// Paths of the loaded libraries that belong to libtorch, CUDA and NCCL, from `/proc/self/maps`.
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
    fn a_driver_or_slurm_variable_is_evidence_of_a_gpu() {
        assert_eq!(evidence_of(false, &[]), None);
        assert!(evidence_of(true, &[]).unwrap().contains("/dev/nvidiactl"));
        assert!(
            evidence_of(false, &[("SLURM_JOB_GPUS", "0")]).unwrap().contains("SLURM_JOB_GPUS=0"),
            "0 is the index of a GPU, not a count"
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
    fn exit_code_of_an_unusable_device_depends_on_the_cause() {
        let code = |text: &str| failure(0, text).exit_code();
        assert_eq!(code("CUDA error 2: out of memory"), 5);
        assert_eq!(code("CUDA error 214: uncorrectable ECC error encountered"), 4);
        assert_eq!(code("CUDA error 101: invalid device ordinal"), 2);
    }

    #[test]
    fn loaded_libraries_include_libtorch() {
        let _ = tch::Tensor::zeros([1], (tch::Kind::Float, tch::Device::Cpu));
        assert!(loaded_libraries().iter().any(|p| p.to_string_lossy().contains("libtorch_cpu")));
    }
}
