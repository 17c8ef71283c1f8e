//! Errors of the data tools: what was being done, where, what was found, and a hint.

use std::path::{Path, PathBuf};

/// Result of everything that touches a data set.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong while packing or reading shards.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user asked for something that cannot be done (exit code 2).
    #[error("{0}")]
    Usage(String),
    /// A file holds something it must not (exit code 3).
    #[error("{}: {place}: {problem}", path.display())]
    Data {
        /// File that holds the problem.
        path: PathBuf,
        /// Field, record or offset inside the file.
        place: String,
        /// Expected and found.
        problem: String,
    },
    /// The operating system refused (exit code 3).
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done, as "cannot read".
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Several findings of one kind of check (exit code 3).
    #[error("{0}")]
    Findings(String),
}

impl Error {
    /// Bad contents of a file.
    pub fn data(path: &Path, place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Data { path: path.to_owned(), place: place.into(), problem: problem.into() }
    }

    /// A failed system call; for `map_err`.
    pub fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    /// The exit code this error means: 2 the user's mistake, 3 bad data.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Data { .. } | Self::Io { .. } | Self::Findings(_) => 3,
        }
    }
}
