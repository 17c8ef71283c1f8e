//! The device a rank computes on.

use dw_launch::Topology;
use tch::Device;

use crate::error::{Error, Result};

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// CUDA where there is a device, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// CUDA, or an error.
    Cuda,
}

/// Picks this rank's device. The binary links libtorch's CPU half only; its CUDA half is opened here.
///
/// # Errors
/// CUDA was asked for and cannot be had.
pub fn pick(choice: Choice, topology: &Topology) -> Result<Device> {
    if choice == Choice::Cpu {
        return Ok(Device::Cpu);
    }
    let opened = open_cuda();
    let devices = if opened.is_ok() { tch::Cuda::device_count() } else { 0 };
    if devices > 0 {
        let index = topology.local_rank % devices as usize;
        set_current(index);
        return Ok(Device::Cuda(index));
    }
    if choice == Choice::Auto {
        return Ok(Device::Cpu);
    }
    let why = opened.err().unwrap_or_else(|| "libtorch sees no CUDA device".into());
    Err(Error::Usage(format!(
        "--device cuda: {why}\nhint: `nvidia-smi` shows the driver (580 or newer is needed); `make setup` on this machine installs libtorch's CUDA half"
    )))
}

#[cfg(unix)]
fn open_cuda() -> std::result::Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: libtorch_cuda registers itself with the libtorch that is loaded already; both are one pinned release.
    let library = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) };
    match library {
        Ok(library) => {
            // Loaded for the rest of the process: its registrations cannot be taken back.
            std::mem::forget(library);
            Ok(())
        }
        Err(e) => Err(format!("libtorch's CUDA half cannot be opened: {e}")),
    }
}

/// Makes a device current for libraries beside libtorch (NCCL).
fn set_current(index: usize) {
    use libloading::os::unix::Library;
    // SAFETY: `cudaSetDevice(int)` of the CUDA runtime that libtorch has loaded.
    unsafe {
        if let Ok(set) = Library::this().get::<unsafe extern "C" fn(i32) -> i32>(b"cudaSetDevice\0") {
            set(index as i32);
        }
    }
}
