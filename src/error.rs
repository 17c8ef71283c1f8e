//! Errors of training and evaluation, and the exit codes they mean.

use std::path::Path;

use dw_launch::abort::Failure;

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
    #[error("{0}\nhint: `nvidia-smi -q` and the kernel's log (Xid) tell what failed; restart without this machine if it happens again")]
    Device(String),
    /// libtorch failed (exit code 5 when memory ran out, 4 when the GPU failed, else 70).
    #[error("libtorch: {}", without_frames(&.0.to_string()))]
    Torch(#[from] tch::TchError),
}

/// libtorch puts its own stack behind what it says.
fn without_frames(text: &str) -> String {
    let frames = ["\nException raised from", "\nframe #0"].iter().filter_map(|mark| text.find(mark)).min();
    text[..frames.unwrap_or(text.len())].trim_end().to_owned()
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
            Self::Peer(_) => 4,
            Self::Preempted(_) => 75,
            Self::Resources(_) => 5,
            Self::Device(_) => 4,
            Self::Torch(e) => dw_launch::abort::classify(&e.to_string()).map_or(70, Failure::exit_code),
        }
    }
}
