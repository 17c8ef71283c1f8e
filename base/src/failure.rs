//! Classification of library error messages: recognises failures of the machine, which have their
//! own exit codes and must not be reported as bugs.

use crate::exit;

/// A failure of the machine rather than of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Out of host or GPU memory.
    Memory,
    /// A thread could not be started.
    Threads,
    /// A GPU, its links or its driver failed. The job may succeed on another node.
    Device,
}

impl Failure {
    /// Exit code of a rank. A failed GPU has the same code as a lost peer, because a restart may
    /// succeed.
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Memory | Self::Threads => exit::RESOURCES,
            Self::Device => exit::PEER,
        }
    }

    /// Describes the failure for an error message. A failed GPU is reported with the host name.
    pub fn describe(self) -> String {
        match self {
            Self::Memory => "out of memory".into(),
            Self::Threads => {
                "cannot start a thread: the limit on processes or memory was reached".into()
            }
            Self::Device => format!("a GPU of host {}, or its driver, failed", crate::host::name()),
        }
    }

    /// Hint to append to the message as a separate line, starting with `hint: `.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Memory => {
                "hint: use fewer images per rank; check for other programs that use memory \
                 (nvidia-smi, free)"
            }
            Self::Threads => {
                "hint: use fewer ranks or threads, or raise the limits (ulimit -u, pids.max of the \
                 cgroup)"
            }
            Self::Device => {
                "hint: check `nvidia-smi -q` and `dmesg | grep -i xid` on that host; resume from \
                 the newest checkpoint without it (SLURM: --exclude)"
            }
        }
    }
}

/// Message parts of the system, std, libtorch and CUDA libraries that mean out of memory. "memory"
/// alone is not enough: an illegal memory access is a bug.
const MEMORY: [&str; 9] = [
    // cudaErrorMemoryAllocation, libtorch's GPU allocator, libnuma, oneMKL.
    "out of memory",
    // ENOMEM, libtorch's CPU allocator.
    "allocate memory",
    "not enough memory",
    // Rust std.
    "memory allocation of",
    "std::bad_alloc",
    // cuBLAS, cuDNN, cuSOLVER and cuSPARSE, as CUBLAS_STATUS_ALLOC_FAILED.
    "_status_alloc_failed",
    // Sub-codes of CUDNN_STATUS_INTERNAL_ERROR in cuDNN 9.
    "cudnn_status_internal_error_host_allocation_failed",
    "cudnn_status_internal_error_device_allocation_failed",
    "cudaerrormemoryallocation",
];

/// Message parts of EAGAIN on thread creation, of Rust std and of libgomp.
const THREADS: [&str; 3] =
    ["resource temporarily unavailable", "failed to spawn thread", "thread creation failed"];

/// Names and messages of CUDA 13 errors that driver_types.h attributes to the hardware, the driver
/// or services of the node. libtorch prints both, NCCL the message.
///
/// Excluded are errors that the header attributes to the program (exit code 70): illegal and
/// misaligned addresses, illegal instructions, invalid address spaces and program counters,
/// device-side asserts, unspecified launch failures, and cudaErrorHardwareStackError, which despite
/// its name means "stack corruption or exceeding the stack size limit" of a kernel. Also excluded
/// are installation errors that a restart cannot fix: a driver that is too old, no kernel for this
/// GPU.
const DEVICE: [(&str, &str); 16] = [
    // The driver could not be initialised, although dw has already counted the devices.
    ("cudaErrorInitializationError", "CUDA error: initialization error"),
    // Used exclusively by another process, in prohibited compute mode, or unresponsive.
    ("cudaErrorDevicesUnavailable", "CUDA-capable device(s) is/are busy or unavailable"),
    // dw has already selected a device, so there was one at startup.
    ("cudaErrorNoDevice", "no CUDA-capable device is detected"),
    // An uncorrectable memory error.
    ("cudaErrorECCUncorrectable", "uncorrectable ECC error encountered"),
    // A link between GPUs lost data.
    ("cudaErrorNvlinkUncorrectable", "uncorrectable NVLink error detected during the execution"),
    // A hardware error, or a failed access to peer memory over NVLink. Only NCCL makes such
    // accesses; they fail when the GPU or process of the peer is lost.
    ("cudaErrorContained", "Invalid access of peer GPU memory over nvlink or a hardware error"),
    // "verify that all required driver daemons are actively running", such as the fabric manager.
    ("cudaErrorSystemNotReady", "system not yet initialized"),
    // Driver and libcuda versions differ: the node was upgraded without a reboot.
    (
        "cudaErrorSystemDriverMismatch",
        "system has unsupported display driver / cuda driver combination",
    ),
    // The MPS server of this node is not running, is recovering from a fatal failure, or has no
    // capacity for another client.
    ("cudaErrorMpsConnectionFailed", "MPS client failed to connect to the MPS"),
    ("cudaErrorMpsRpcFailure", "between the MPS server and the MPS client failed"),
    ("cudaErrorMpsServerNotReady", "MPS server is not ready to accept new MPS client requests"),
    (
        "cudaErrorMpsMaxClientsReached",
        "the hardware resources required to create MPS client have been exhausted",
    ),
    (
        "cudaErrorMpsMaxConnectionsReached",
        "the hardware resources required to support device connections have been exhausted",
    ),
    // The MPS server terminates clients when the work of another client fails.
    ("cudaErrorMpsClientTerminated", "the MPS client has been terminated by the server"),
    // "an async error has occurred in a device outside of CUDA"; the misspelling is in CUDA.
    ("cudaErrorExternalDevice", "an async error has occured in external entity outside of CUDA"),
    // "an unknown internal error", reported after a GPU became unresponsive (Xid 79).
    ("cudaErrorUnknown", "CUDA error: unknown error"),
];

/// Messages for "unknown error" and "initialization error" with enough context to be unambiguous,
/// in the formats of the driver API, NCCL and dw; and messages of NVML and the kernel module for a
/// lost GPU.
const OTHER_DEVICE: [&str; 7] = [
    "CUDA driver error: unknown error",
    "Cuda failure 999 'unknown error'",
    "Cuda failure 3 'initialization error'",
    "CUDA error 999: unknown error",
    "CUDA error 3: initialization error",
    "GPU is lost",
    "fallen off the bus",
];

/// Classifies the error message of a library. `None` if it reports no failure of the machine; it is
/// then treated as a bug.
pub fn classify(text: &str) -> Option<Failure> {
    let text = text.to_lowercase();
    let has = |part: &str| text.contains(&part.to_lowercase());
    if MEMORY.iter().any(|part| has(part)) {
        Some(Failure::Memory)
    } else if THREADS.iter().any(|part| has(part)) {
        Some(Failure::Threads)
    } else if DEVICE.iter().any(|(name, message)| has(name) || has(message))
        || OTHER_DEVICE.iter().any(|part| has(part))
    {
        Some(Failure::Device)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Formats a CUDA error like libtorch.
    fn libtorch_message(name: &str, text: &str) -> String {
        format!(
            "CUDA error: {text}\nSearch for `{name}' in https://docs.nvidia.com/cuda/\
             cuda-runtime-api/group__CUDART__TYPES.html for more information.\nCUDA kernel errors \
             might be asynchronously reported at some other API call, so the stacktrace below \
             might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
        )
    }

    #[test]
    fn memory_and_thread_failures_are_recognised() {
        for text in [
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB",
            "CUDA error: out of memory",
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
            "Intel oneMKL DFTI ERROR: Not enough memory to allocate",
            "memory allocation of 8 bytes failed",
            "std::bad_alloc",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
            "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
            "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
            &libtorch_message("cudaErrorMemoryAllocation", "out of memory"),
            "Search for `cudaErrorMemoryAllocation'",
        ] {
            assert_eq!(classify(text), Some(Failure::Memory), "{text}");
        }
        for text in [
            "failed to spawn thread: Os { code: 11, kind: WouldBlock, message: \"x\" }",
            "ThreadPoolBuildError { kind: IOError(Resource temporarily unavailable) }",
            "libgomp: Thread creation failed",
        ] {
            assert_eq!(classify(text), Some(Failure::Threads), "{text}");
        }
        assert_eq!((Failure::Memory.exit_code(), Failure::Threads.exit_code()), (5, 5));
    }

    #[test]
    fn device_failures_are_recognised() {
        for (name, text) in DEVICE {
            let text = text.strip_prefix("CUDA error: ").unwrap_or(text);
            for text in
                [libtorch_message(name, text), format!("CUDA error: {text}"), format!("`{name}'")]
            {
                assert_eq!(classify(&text), Some(Failure::Device), "{text}");
            }
        }
        for text in [
            "NCCL: all-reduce failed with code 1: unhandled cuda error (Cuda failure 214 \
             'uncorrectable ECC error encountered')",
            "CUDA driver error: unknown error",
            "unhandled cuda error (Cuda failure 999 'unknown error')",
            "unhandled cuda error (Cuda failure 3 'initialization error')",
            "CUDA device 0 of n7 cannot be used: CUDA error 999: unknown error",
            "CUDA device 0 of n7 cannot be used: CUDA error 3: initialization error",
            "CUDA device 0 cannot be used: CUDA error 214: uncorrectable ECC error encountered",
            "nvmlDeviceGetHandleByIndex(0) failed: GPU is lost",
            "NVRM: GPU at PCI:0000:3b:00: GPU has fallen off the bus.",
        ] {
            assert_eq!(classify(text), Some(Failure::Device), "{text}");
        }
        assert_eq!(Failure::Device.exit_code(), 4);
        assert!(Failure::Device.describe().contains(&crate::host::name()));
    }

    #[test]
    fn program_errors_are_not_machine_failures() {
        for (name, text) in [
            ("cudaErrorInvalidValue", "invalid argument"),
            ("cudaErrorInvalidConfiguration", "invalid configuration argument"),
            (
                "cudaErrorInsufficientDriver",
                "CUDA driver version is insufficient for CUDA runtime version",
            ),
            (
                "cudaErrorNoKernelImageForDevice",
                "no kernel image is available for execution on the device",
            ),
            ("cudaErrorIllegalAddress", "an illegal memory access was encountered"),
            ("cudaErrorLaunchOutOfResources", "too many resources requested for launch"),
            ("cudaErrorLaunchTimeout", "the launch timed out and was terminated"),
            ("cudaErrorAssert", "device-side assert triggered"),
            ("cudaErrorHardwareStackError", "hardware stack error"),
            ("cudaErrorIllegalInstruction", "an illegal instruction was encountered"),
            ("cudaErrorMisalignedAddress", "misaligned address"),
            (
                "cudaErrorInvalidAddressSpace",
                "operation not supported on global/shared address space",
            ),
            ("cudaErrorInvalidPc", "invalid program counter"),
            ("cudaErrorLaunchFailure", "unspecified launch failure"),
        ] {
            let text = libtorch_message(name, text);
            assert_eq!(classify(&text), None, "{text}");
        }
        for text in [
            "index out of bounds: the len is 3 but the index is 3",
            "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`",
            "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
            "Unknown error 524",
        ] {
            assert_eq!(classify(text), None, "{text}");
        }
    }
}
