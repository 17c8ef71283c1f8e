//! Errors of weight files: what was being done, which file, what was found, and a hint.

use std::path::Path;

/// Result of everything that touches a weight file.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user asked for something that cannot be done (exit code 2).
    #[error("{0}")]
    Usage(String),
    /// A file holds something it must not, or could not be read or written (exit code 3).
    #[error("{0}")]
    Data(String),
}

impl Error {
    /// Bad contents of a file.
    pub fn data(path: &Path, problem: impl std::fmt::Display) -> Self {
        Self::Data(format!("{}: {problem}", path.display()))
    }

    /// A failed system call; for `map_err`.
    pub fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.display().to_string();
        move |e| Self::Data(format!("{doing} {path}: {e}"))
    }

    /// The exit code this error means: 2 the user's mistake, 3 bad data.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Data(_) => 3,
        }
    }
}
