//! Which failures of the machine a library's error text stands for. Such a failure is no bug of the
//! program, and has an exit code of its own.

/// A failure of the machine, not of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The memory of the host or of a GPU ran out.
    Memory,
    /// No thread could be started.
    Threads,
    /// A GPU, its links or its driver failed: the job may run elsewhere.
    Device,
}

impl Failure {
    /// Exit code of a rank: 5 for memory and threads; 4 for a failed GPU, as for a lost peer,
    /// because starting again helps.
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Memory | Self::Threads => 5,
            Self::Device => 4,
        }
    }

    /// What happened, for a message; a failed GPU with this host's name.
    pub fn describe(self) -> String {
        match self {
            Self::Memory => "memory ran out".into(),
            Self::Threads => {
                "no thread could be started: a limit of processes or memory is reached".into()
            }
            Self::Device => format!("a GPU of host {}, or its driver, failed", crate::host::name()),
        }
    }

    /// A line for below the message, beginning with "hint: ".
    pub fn hint(self) -> &'static str {
        match self {
            Self::Memory => {
                "hint: fewer images a rank need less memory; another program may use it, too \
                 (nvidia-smi, free)"
            }
            Self::Threads => {
                "hint: fewer ranks or threads; ulimit -u and the cgroup's pids.max limit"
            }
            Self::Device => {
                "hint: `nvidia-smi -q` and `dmesg | grep -i xid` on that host tell more; go on \
                 from the newest checkpoint without it (SLURM: --exclude)"
            }
        }
    }
}

/// Words of the system, std, libtorch and CUDA's libraries when memory runs out. Other errors
/// mention memory, too: an illegal access is a bug.
const MEMORY: [&str; 9] = [
    // CUDA's cudaErrorMemoryAllocation, libtorch's allocator for GPUs, libnuma, oneMKL.
    "out of memory",
    // ENOMEM, and libtorch's allocator for the host.
    "allocate memory",
    "not enough memory",
    // Rust's std.
    "memory allocation of",
    "std::bad_alloc",
    // cuBLAS, cuDNN, cuSOLVER and cuSPARSE, as CUBLAS_STATUS_ALLOC_FAILED.
    "_status_alloc_failed",
    // cuDNN 9's kinds of CUDNN_STATUS_INTERNAL_ERROR.
    "cudnn_status_internal_error_host_allocation_failed",
    "cudnn_status_internal_error_device_allocation_failed",
    "cudaerrormemoryallocation",
];

/// EAGAIN of a thread's start, std, and libgomp.
const THREADS: [&str; 3] =
    ["resource temporarily unavailable", "failed to spawn thread", "thread creation failed"];

/// Names and texts of those errors of CUDA 13 for which driver_types.h names the hardware, the
/// driver or the node's services as the cause. libtorch prints both, NCCL the text. Each row says
/// why.
///
/// Not here, because the header names the program as a cause (exit code 70): illegal and misaligned
/// addresses, illegal instructions, a wrong address space or program counter, device-side asserts,
/// unspecified launch failures, and cudaErrorHardwareStackError, which in spite of its name means
/// "stack corruption or exceeding the stack size limit" of a kernel. Neither are errors of the
/// installation that every start meets again: a driver that is too old, no kernel for this GPU.
const DEVICE: [(&str, &str); 16] = [
    // The driver could not be initialised. dw has counted the devices before it meets this.
    ("cudaErrorInitializationError", "CUDA error: initialization error"),
    // Held by another process, in a prohibited compute mode, or no longer answering.
    ("cudaErrorDevicesUnavailable", "CUDA-capable device(s) is/are busy or unavailable"),
    // dw has chosen a device before: it was there.
    ("cudaErrorNoDevice", "no CUDA-capable device is detected"),
    // A memory error that the GPU could not correct.
    ("cudaErrorECCUncorrectable", "uncorrectable ECC error encountered"),
    // A link between GPUs lost data.
    ("cudaErrorNvlinkUncorrectable", "uncorrectable NVLink error detected during the execution"),
    // A hardware error, or an access to a peer's memory over NVLink that failed. Only NCCL makes
    // such accesses: they are invalid when the peer's GPU or process is gone.
    ("cudaErrorContained", "Invalid access of peer GPU memory over nvlink or a hardware error"),
    // "verify that all required driver daemons are actively running": as NVSwitch's fabric manager.
    ("cudaErrorSystemNotReady", "system not yet initialized"),
    // Driver and libcuda of different versions: a node that was upgraded and not started again.
    (
        "cudaErrorSystemDriverMismatch",
        "system has unsupported display driver / cuda driver combination",
    ),
    // MPS, by which processes share a GPU: its server on this node is gone, recovers from a fatal
    // failure, or has no place for another client.
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
    // Ended by the server, which does so when another client's work failed.
    ("cudaErrorMpsClientTerminated", "the MPS client has been terminated by the server"),
    // "an async error has occurred in a device outside of CUDA"; the spelling is CUDA's.
    ("cudaErrorExternalDevice", "an async error has occured in external entity outside of CUDA"),
    // "an unknown internal error": what the driver says once a GPU has stopped answering (Xid 79).
    ("cudaErrorUnknown", "CUDA error: unknown error"),
];

/// The two whose text alone could be anyone's, as the driver's errors, NCCL, and dw with the
/// error's number print them; and a lost GPU in the words of NVML and of the kernel module.
const OTHERS: [&str; 7] = [
    "CUDA driver error: unknown error",
    "Cuda failure 999 'unknown error'",
    "Cuda failure 3 'initialization error'",
    "CUDA error 999: unknown error",
    "CUDA error 3: initialization error",
    "GPU is lost",
    "fallen off the bus",
];

/// What failed, by a library's error text; `None`: anything else, as a bug.
pub fn classify(text: &str) -> Option<Failure> {
    let text = text.to_lowercase();
    let has = |words: &str| text.contains(&words.to_lowercase());
    if MEMORY.iter().any(|words| has(words)) {
        Some(Failure::Memory)
    } else if THREADS.iter().any(|words| has(words)) {
        Some(Failure::Threads)
    } else if DEVICE.iter().any(|(name, words)| has(name) || has(words))
        || OTHERS.iter().any(|words| has(words))
    {
        Some(Failure::Device)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error of CUDA as libtorch prints it.
    fn libtorch(name: &str, text: &str) -> String {
        format!(
            "CUDA error: {text}\nSearch for `{name}' in https://docs.nvidia.com/cuda/\
             cuda-runtime-api/group__CUDART__TYPES.html for more information.\nCUDA kernel errors \
             might be asynchronously reported at some other API call, so the stacktrace below \
             might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
        )
    }

    #[test]
    fn memory_and_threads() {
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
            &libtorch("cudaErrorMemoryAllocation", "out of memory"),
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
    fn failed_devices() {
        for (name, text) in DEVICE {
            let text = text.strip_prefix("CUDA error: ").unwrap_or(text);
            for text in [libtorch(name, text), format!("CUDA error: {text}"), format!("`{name}'")] {
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
    fn bugs_are_no_failures_of_the_machine() {
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
            let text = libtorch(name, text);
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
