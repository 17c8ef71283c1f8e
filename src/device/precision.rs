//! Meaning of `train.precision` on each device.

use dw_launch::Topology;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

use crate::{Error, Result};

/// `train.precision`: kinds of the network's tensors, and rounding of f32 convolutions on a GPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// `f32` on a CPU, `tf32` on a GPU (PyTorch's default when the paper's models were trained).
    #[default]
    Auto,
    /// 32 bits with IEEE 754 rounding on every device.
    F32,
    /// As `f32`, but convolutions on a GPU round their inputs to TF32 (10 bits of mantissa) and
    /// accumulate in f32.
    Tf32,
    /// bf16 activations (8 bits of mantissa). Parameters, their gradients and momentum, raw
    /// predictions and loss are f32; sums of products are accumulated in f32.
    Bf16,
    /// 64 bits: for tests and for comparing runs.
    F64,
}

/// Environment variables that change the rounding of f32 in NVIDIA's libraries and oneDNN, whatever
/// libtorch's settings are.
const OVERRIDES: [&str; 3] =
    ["NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"];

impl Precision {
    /// Name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
            Self::F64 => "f64",
        }
    }

    /// Replaces `auto` by the precision that it selects on `device`.
    ///
    /// # Errors
    /// `tf32` on a CPU, which does not support it.
    pub fn resolve(self, device: Device) -> Result<Self> {
        match (self, device.is_cuda()) {
            (Self::Auto, true) => Ok(Self::Tf32),
            (Self::Auto, false) => Ok(Self::F32),
            (Self::Tf32, false) => Err(Error::Usage(
                "train.precision = \"tf32\": only GPUs have TF32, and this run is on the CPU\n\
                 hint: \"auto\" or \"f32\""
                    .into(),
            )),
            (explicit, _) => Ok(explicit),
        }
    }

    /// Precision for evaluating a network that was trained with this one: the same, or f32 for a
    /// `tf32` network on a CPU.
    #[must_use]
    pub fn for_evaluation(self, device: Device) -> Self {
        self.resolve(device).unwrap_or(Self::F32)
    }

    /// Kind of the parameters, their gradients, the raw predictions and the loss.
    pub fn kind(self) -> Kind {
        if self == Self::F64 { Kind::Double } else { Kind::Float }
    }

    /// Kind of the activations.
    pub fn activations(self) -> Kind {
        if self == Self::Bf16 { Kind::BFloat16 } else { self.kind() }
    }

    /// Sets the rounding of f32 convolutions for the whole process. On rank 0 it logs a warning if
    /// the environment overrides it, and for bf16 on a CPU without matrix instructions for it.
    ///
    /// # Errors
    /// libtorch rejects the setting.
    pub fn apply(self, device: Device) -> Result<()> {
        let logs = Topology::from_env().rank == 0;
        if logs && self == Self::Bf16 && device == Device::Cpu && !dw_torch::cpu_has(c"amx_bf16") {
            let effect = if dw_torch::cpu_has(c"avx512_bf16") {
                "no AMX, only AVX-512 BF16: bf16 can be faster or slower than f32"
            } else {
                "no AMX and no AVX-512 BF16: f32 is faster"
            };
            tracing::warn!("train.precision = \"bf16\": this CPU has {effect} (docs/training.md)");
        }
        dw_torch::allow_tf32_convolutions(self == Self::Tf32)?;
        for name in OVERRIDES.iter().filter(|name| logs && std::env::var_os(name).is_some()) {
            tracing::warn!(
                "{name} is set: it overrides the rounding of f32 that train.precision selects"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_depends_on_the_device_and_tf32_requires_a_gpu() {
        let (cpu, gpu) = (Device::Cpu, Device::Cuda(1));
        assert_eq!(Precision::Auto.resolve(cpu).unwrap(), Precision::F32);
        assert_eq!(Precision::Auto.resolve(gpu).unwrap(), Precision::Tf32);
        assert_eq!(
            Precision::F32.resolve(gpu).unwrap(),
            Precision::F32,
            "f32 is IEEE f32 on a GPU too"
        );
        let e = Precision::Tf32.resolve(cpu).unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains("train.precision"), "{e}");
        assert_eq!(Precision::Tf32.for_evaluation(cpu), Precision::F32);
        assert_eq!(Precision::F64.for_evaluation(cpu), Precision::F64);
        let kinds = |p: Precision| (p.kind(), p.activations());
        assert_eq!(kinds(Precision::Bf16), (Kind::Float, Kind::BFloat16));
        assert_eq!(kinds(Precision::F64), (Kind::Double, Kind::Double));
    }

    /// Compares libtorch's knowledge of the CPU with that of the operating system.
    #[test]
    fn bf16_instructions_are_those_in_cpuinfo() {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        for name in [c"avx512_bf16", c"amx_bf16"] {
            let expected = text.split_whitespace().any(|f| f == name.to_str().unwrap());
            assert_eq!(dw_torch::cpu_has(name), expected, "{name:?}");
        }
    }
}
