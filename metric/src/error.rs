//! Errors of an evaluation: what was being done, which file and item, what was expected and found, and a hint.

use std::path::Path;

/// Result of everything that reads files or options.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user asked for something that cannot be done (exit code 2).
    #[error("{0}")]
    Usage(String),
    /// A file holds something it must not (exit code 3).
    #[error("{0}")]
    Data(String),
    /// No thread could be started (exit code 5).
    #[error("{0}")]
    Resources(String),
}

impl Error {
    /// Bad contents of a file: `item` as `results[3]`.
    pub fn data(path: &Path, item: &str, problem: impl std::fmt::Display) -> Self {
        Self::Data(format!("{}: {item}: {problem}", path.display()))
    }

    /// A file that cannot be read; for `map_err`. The system's message names the file.
    pub fn read(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |e| Self::Usage(format!("cannot read the {what}: {e}"))
    }

    /// The exit code this error means: 2 the user's mistake, 3 bad data, 5 no thread could be started.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Data(_) => 3,
            Self::Resources(_) => 5,
        }
    }
}
