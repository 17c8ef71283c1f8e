//! Memory of a rank: its peak, and what the C library does with freed memory.

use tch::{Device, Kind, Tensor};

use crate::Result;

/// Peak of the memory of this rank, MiB: tensors on its GPU, or everything resident on the CPU.
///
/// # Errors
/// libtorch has no allocator for the device.
pub fn peak_mib(device: Device) -> Result<f64> {
    Ok(match dw_torch::peak_bytes(device)? {
        Some(bytes) => bytes as f64 / (1 << 20) as f64,
        None => resident_peak_kib().unwrap_or(f64::NAN) / 1024.0,
    })
}

/// Variables with which a user configures the C library's `malloc`.
#[cfg(target_env = "gnu")]
const MALLOC: [&str; 4] =
    ["GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"];

/// Whether the C library's allocator is to be configured: on the CPU, unless the user has done it.
#[cfg(target_env = "gnu")]
fn configures_malloc(device: Device) -> bool {
    device == Device::Cpu && MALLOC.iter().all(|name| std::env::var_os(name).is_none())
}

/// On the CPU, makes the C library return large blocks to the system when they are freed, until
/// [`keep_freed`] is called: while a network is built its weights are copied, and the memory of the
/// first copies would stay occupied. No effect if the user has configured `malloc`.
pub fn return_freed(device: Device) {
    #[cfg(target_env = "gnu")]
    if configures_malloc(device) {
        // SAFETY: changes a number of the allocator; no preconditions. By default it grows with
        // the blocks that are freed.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
        }
    }
}

/// On the CPU, makes the C library keep freed memory instead of returning it to the system, unless
/// the user has configured `malloc`. Called once the network is built.
///
/// Every step allocates and frees the same large tensors. By default glibc returns them, and the
/// system clears each page anew at its first use in the next step. Measurements:
/// `docs/performance.md`.
pub fn keep_freed(device: Device) {
    #[cfg(target_env = "gnu")]
    if configures_malloc(device) {
        // SAFETY: changes numbers of the allocator; no preconditions. -1 is "never" for the
        // threshold. Failure leaves the defaults, which are only slower.
        unsafe {
            libc::mallopt(libc::M_MMAP_MAX, 0);
            libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
        }
    }
}

/// Size of a huge page on x86-64, a multiple of the size of small pages everywhere.
#[cfg(target_os = "linux")]
const HUGE_PAGE: usize = 2 << 20;

/// A one-dimensional tensor of zeros, on the CPU in huge pages where the system has them.
///
/// Ranks on one node copy each other's gradients directly, and the system locks every page of the
/// other process for each copy: with huge pages an all-reduce takes half the time
/// (`docs/performance.md`).
pub fn zeros_in_huge_pages(count: i64, kind: Kind, device: Device) -> Tensor {
    let mut tensor = Tensor::empty([count], (kind, device));
    #[cfg(target_os = "linux")]
    if device == Device::Cpu {
        let start = tensor.data_ptr() as usize;
        let end = start + tensor.numel() * kind.elt_size_in_bytes();
        let first = start.next_multiple_of(HUGE_PAGE);
        if first < end {
            // SAFETY: the range begins at a page and ends in the tensor's memory. The advice keeps
            // the content. If it fails, as on a kernel without huge pages, the pages are small.
            unsafe {
                libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_HUGEPAGE);
            }
        }
    }
    let _ = tensor.zero_();
    tensor
}

/// `VmHWM` of this process, KiB.
fn resident_peak_kib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}
