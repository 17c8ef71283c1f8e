//! The device a rank computes on: the CPU or one CUDA GPU.
//!
//! * [`cuda`]: libtorch's CUDA half, opened at run time, and the CUDA runtime that it brings
//! * [`Precision`]: what `train.precision` means on which device

pub mod cuda;
mod precision;

use dw_launch::Topology;
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};
pub use precision::Precision;

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// CUDA where a GPU is visible, else the CPU
    Auto,
    /// The CPU
    Cpu,
    /// CUDA, or an error
    #[value(alias = "gpu")]
    Cuda,
}

/// Makes the process ready for a device. To be called first in `main`, before any thread exists and before
/// anything that may ask libtorch for an accelerator: libtorch looks for its CUDA half once in a process, and
/// even `tch::manual_seed` makes it look.
pub fn open(choice: Choice) {
    if choice != Choice::Cpu {
        cuda::open();
    }
}

/// Picks this rank's device, after [`open`] with the same choice.
///
/// # Errors
/// CUDA was asked for, or a GPU is visible, and CUDA cannot be used (exit code 2); the GPU or its driver failed (4).
pub fn pick(choice: Choice, topology: &Topology) -> Result<Device> {
    if choice == Choice::Cpu {
        return Ok(Device::Cpu);
    }
    match cuda::devices() {
        Ok(count) => {
            // With one GPU per process (a batch system that shows each task its own) every rank takes the first.
            let index = topology.local_rank % count;
            cuda::set_current(index)?;
            Ok(Device::Cuda(index))
        }
        Err(Error::Usage(why)) if choice == Choice::Cuda => {
            Err(Error::Usage(format!("--device cuda: {why}")))
        }
        Err(Error::Usage(why)) => {
            if let Some(evidence) = cuda::gpu_evidence() {
                let text = format!("--device auto: {evidence}, but CUDA cannot be used: {why}");
                return Err(Error::Usage(format!("{text}; --device cpu runs on the CPU")));
            }
            if topology.rank == 0 {
                tracing::info!("no GPU is visible: running on the CPU");
            }
            Ok(Device::Cpu)
        }
        Err(failed) => Err(failed),
    }
}

/// Switches libtorch to deterministic algorithms, or off them. To be called before [`pick`], which starts
/// the CUDA runtime.
///
/// # Errors
/// libtorch refuses.
pub fn deterministic(on: bool) -> Result<()> {
    // cuBLAS adds in a fixed order only with a workspace of fixed size; NCCL's sums inside NVSwitches (NVLS) need not.
    for (name, value) in [("CUBLAS_WORKSPACE_CONFIG", ":4096:8"), ("NCCL_ALGO", "^NVLS")] {
        if on && std::env::var_os(name).is_none() {
            // SAFETY: no thread of ours or of a library runs yet that could read the environment.
            unsafe { std::env::set_var(name, value) };
        }
    }
    Ok(crate::torch::deterministic(on)?)
}

/// Images to the device in the network's kind, channels-last: the layout of the weights.
pub fn upload(images: &Tensor, device: Device, kind: Kind) -> Tensor {
    // Page-locked images (the loader's, for a GPU) are copied while the host goes on.
    let there = images.to_device_(device, images.kind(), true, false).to_kind(kind);
    there.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}
