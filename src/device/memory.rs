//! Peak memory of a rank.

use tch::Device;

use crate::{Result, torch};

/// Peak of the memory of this rank, MiB: tensors on its GPU, or everything resident on the CPU.
///
/// # Errors
/// libtorch has no allocator for the device.
pub fn peak_mib(device: Device) -> Result<f64> {
    Ok(match torch::peak_bytes(device)? {
        Some(bytes) => bytes as f64 / (1 << 20) as f64,
        None => resident_peak_kib().unwrap_or(f64::NAN) / 1024.0,
    })
}

/// `VmHWM` of this process, KiB.
fn resident_peak_kib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}
