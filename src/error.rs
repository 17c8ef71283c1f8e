//! Errors of training and evaluation, and the exit codes they mean.

use std::path::Path;

use dw_launch::abort::{Failure, classify};

/// Result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A mistake in the command or the configuration (exit code 2).
    #[error("{0}")]
    Usage(String),
    /// A file holds something it must not (exit code 3).
    #[error("{0}")]
    Data(String),
    /// Shards (exit code 2 or 3).
    #[error(transparent)]
    Shards(#[from] dw_shards::Error),
    /// Weight files (exit code 2 or 3).
    #[error(transparent)]
    Weights(#[from] dw_weights::Error),
    /// The metric's files and options (exit code 2 or 3).
    #[error(transparent)]
    Metric(#[from] dw_metric::Error),
    /// Another rank was lost, or a collective failed (exit code 4); or no thread could be started (5).
    #[error("{0}")]
    Peer(#[from] dw_launch::Error),
    /// The loss or a gradient is not a number (exit code 3).
    #[error("{0}")]
    NotFinite(String),
    /// A checkpoint was written because the job was told to end (exit code 75: run again).
    #[error("{0}")]
    Preempted(String),
    /// The machine refused threads or memory (exit code 5).
    #[error("{0}")]
    Resources(String),
    /// This rank's GPU failed (exit code 4: start again, elsewhere if it happens again).
    #[error("{0}\n{hint}", hint = Failure::Device.hint())]
    Device(String),
    /// libtorch failed (exit code 5 when memory ran out, 4 when the GPU failed, else 70).
    #[error("libtorch: {}", torch_text(&.0.to_string()))]
    Torch(#[from] tch::TchError),
}

/// libtorch's message without its stack, and what a failure of the machine means.
fn torch_text(text: &str) -> String {
    let frames =
        ["\nException raised from", "\nframe #0"].iter().filter_map(|mark| text.find(mark)).min();
    let message = text[..frames.unwrap_or(text.len())].trim_end();
    match classify(text) {
        Some(failure) => format!("{message}\n{}\n{}", failure.describe(), failure.hint()),
        None => message.to_owned(),
    }
}

impl Error {
    /// A file that could not be read or written.
    pub fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.display().to_string();
        move |e| Self::Data(format!("{doing} {path}: {e}"))
    }

    /// The exit code of a rank.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Usage(_) => 2,
            Self::Data(_) | Self::NotFinite(_) => 3,
            Self::Shards(e) => e.exit_code() as i32,
            Self::Weights(e) => e.exit_code() as i32,
            Self::Metric(e) => e.exit_code().into(),
            Self::Peer(e) if e.out_of_resources() => 5,
            Self::Peer(_) | Self::Device(_) => 4,
            Self::Preempted(_) => 75,
            Self::Resources(_) => 5,
            Self::Torch(e) => classify(&e.to_string()).map_or(70, Failure::exit_code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libtorch_says_decides_the_code_and_is_kept() {
        let error = |text: &str| Error::Torch(tch::TchError::Torch(text.to_owned()));
        for (text, code) in [
            ("CUDA out of memory. Tried to allocate 2.00 GiB", 5),
            ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", 5),
            ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", 5),
            ("CUDA error: uncorrectable ECC error encountered", 4),
            ("CUDA error: an illegal memory access was encountered", 70),
        ] {
            let e = error(&format!("{text}\nException raised from x at y.cpp:1\nframe #0: z"));
            assert_eq!(e.exit_code(), code, "{text}");
            assert!(e.to_string().contains(text) && !e.to_string().contains("frame #0"), "{e}");
        }
        let lost = error("CUDA error: uncorrectable ECC error encountered").to_string();
        assert!(lost.contains(&dw_launch::host()) && lost.contains("hint:"), "{lost}");
    }
}
