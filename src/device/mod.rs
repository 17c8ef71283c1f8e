//! The device of a rank: the CPU or one CUDA GPU.
//!
//! * [`cuda`]: libtorch's CUDA library, opened at run time, and the CUDA runtime that it loads
//! * [`Precision`]: meaning of `train.precision` on each device
//! * [`threads`]: CPU threads of a rank
//! * [`join`]: the ranks of a job on their devices
//! * [`kernels`]: custom CUDA kernels

mod buffer;
mod cpus;
pub mod cuda;
pub mod join;
pub mod kernels;
mod memory;
mod precision;
mod side;
pub mod threads;

use dw_launch::Topology;
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};
pub use buffer::buffer_of;
pub use memory::{keep_freed, peak_mib, return_freed, zeros_in_huge_pages};
pub use precision::Precision;
pub use side::CudaSide;

/// Value of the option `--device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// CUDA if a GPU is visible, else the CPU
    Auto,
    /// The CPU
    Cpu,
    /// CUDA, or an error
    #[value(alias = "gpu")]
    Cuda,
}

/// Opens libtorch's CUDA library unless the choice is the CPU. Must be called first in `main`,
/// before any thread exists and before any use of libtorch that may look for an accelerator:
/// libtorch looks for its CUDA library once per process, and even `tch::manual_seed` triggers that.
pub fn open(choice: Choice) {
    if choice != Choice::Cpu {
        cuda::open();
    }
}

/// Picks this rank's device, after [`open`] with the same choice.
///
/// # Errors
/// CUDA cannot be used although it was requested or a GPU is visible (exit code 2), or the GPU or
/// its driver failed (exit code 4).
pub fn pick(choice: Choice, topology: &Topology) -> Result<Device> {
    if choice == Choice::Cpu {
        return Ok(Device::Cpu);
    }
    match cuda::devices() {
        Ok(count) => {
            // If the batch system shows each process only its own GPU, every rank takes device 0.
            let index = topology.local_rank % count;
            cuda::set_current(index)?;
            kernels::prepare(index);
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

/// Turns libtorch's deterministic algorithms on or off. Must be called before [`pick`], which
/// initialises the CUDA runtime.
///
/// # Errors
/// libtorch rejects the setting.
pub fn deterministic(on: bool) -> Result<()> {
    // cuBLAS is deterministic only with a workspace of fixed size, and NCCL only without reductions
    // inside NVSwitches (NVLS).
    for (name, value) in [("CUBLAS_WORKSPACE_CONFIG", ":4096:8"), ("NCCL_NVLS_ENABLE", "0")] {
        if on && std::env::var_os(name).is_none() {
            // SAFETY: no other thread exists yet that could read the environment.
            unsafe { std::env::set_var(name, value) };
        }
    }
    dw_torch::deterministic(on)
}

/// Copies images `[B, 3, H, W]` to the device, in the network's kind and channels-last: the memory
/// layout of the weights.
pub fn upload(images: &Tensor, device: Device, kind: Kind) -> Tensor {
    let there = dw_torch::upload(images, device).to_kind(kind);
    there.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}
