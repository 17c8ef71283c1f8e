//! What `train.precision` means on which device.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

use crate::{Error, Result};
use crate::torch;

/// Kind of a network's numbers, and how f32 convolutions round on a GPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// `f32` on a CPU, `tf32` on a GPU (what PyTorch did for the authors).
    #[default]
    Auto,
    /// 32 bits, rounded as IEEE 754 has it, on every device.
    F32,
    /// As `f32`, but convolutions on a GPU round their inputs to TF32 (10 bits of mantissa) and add in f32.
    Tf32,
    /// bf16 weights and activations: not in this version.
    Bf16,
    /// 64 bits: for comparing runs, not for speed.
    F64,
}

/// Variables by which NVIDIA's libraries and oneDNN change the rounding of f32 whatever libtorch is told.
const OVERRIDES: [&str; 3] =
    ["NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"];

impl Precision {
    /// As written in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
            Self::F64 => "f64",
        }
    }

    /// What `auto` stands for on a device; never `auto`.
    ///
    /// # Errors
    /// `tf32` on a CPU, which has no such numbers.
    pub fn resolve(self, device: Device) -> Result<Self> {
        match (self, device.is_cuda()) {
            (Self::Auto, true) => Ok(Self::Tf32),
            (Self::Auto, false) => Ok(Self::F32),
            (Self::Tf32, false) => Err(Error::Usage(
                "train.precision = \"tf32\": this run is on the CPU, and only GPUs have TF32\nhint: \"auto\" or \"f32\"".into(),
            )),
            (known, _) => Ok(known),
        }
    }

    /// What a network trained with this precision is evaluated with: as trained, and in f32 where a network
    /// of a GPU run is evaluated on a CPU.
    #[must_use]
    pub fn for_evaluation(self, device: Device) -> Self {
        self.resolve(device).unwrap_or(Self::F32)
    }

    /// Kind of the network's tensors.
    pub fn kind(self) -> Kind {
        match self {
            Self::F64 => Kind::Double,
            Self::Bf16 => Kind::BFloat16,
            Self::Auto | Self::F32 | Self::Tf32 => Kind::Float,
        }
    }

    /// Sets libtorch's rounding of f32 convolutions for the whole process, and warns where the environment overrides it.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn apply(self) -> Result<()> {
        torch::allow_tf32_convolutions(self == Self::Tf32)?;
        for name in OVERRIDES.iter().filter(|name| std::env::var_os(name).is_some()) {
            tracing::warn!(
                "{name} is set: it changes how f32 is rounded, whatever train.precision says"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_depends_on_the_device_and_tf32_needs_a_gpu() {
        let (cpu, gpu) = (Device::Cpu, Device::Cuda(1));
        assert_eq!(Precision::Auto.resolve(cpu).unwrap(), Precision::F32);
        assert_eq!(Precision::Auto.resolve(gpu).unwrap(), Precision::Tf32);
        assert_eq!(
            Precision::F32.resolve(gpu).unwrap(),
            Precision::F32,
            "f32 means f32 everywhere"
        );
        let e = Precision::Tf32.resolve(cpu).unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains("train.precision"), "{e}");
        assert_eq!(Precision::Tf32.for_evaluation(cpu), Precision::F32);
        assert_eq!(Precision::F64.for_evaluation(cpu), Precision::F64);
    }
}
