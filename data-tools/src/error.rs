//! Errors of the data tools: what was being done, where, what was found, and a hint.
//!
//! Messages hold names from files. [`Error`]'s text is safe to print: control characters in it are
//! escaped, and a name inside a message goes through [`shown`], so that it cannot fake a line
//! either.

use std::path::{Path, PathBuf};

use dw_base::text::{lines, shown};

/// Result of everything that touches a data set.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong while packing or reading shards.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user asked for something that cannot be done (exit code 2).
    #[error("{}", lines(.0))]
    Usage(String),
    /// A file holds something it must not (exit code 3).
    #[error("{}: {}: {}", shown(path.display()), shown(place), lines(problem))]
    Data {
        /// File that holds the problem.
        path: PathBuf,
        /// Field, record or offset inside the file.
        place: String,
        /// Expected and found.
        problem: String,
    },
    /// The operating system refused (exit code 3).
    #[error("{doing} {}: {source}", shown(path.display()))]
    Io {
        /// What was being done, as "cannot read".
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Several findings of one kind of check (exit code 3).
    #[error("{}", lines(.0))]
    Findings(String),
    /// The machine has no more memory or threads to give (exit code 5).
    #[error("{}", lines(.0))]
    Resources(String),
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

    /// The exit code this error means: 2 the user's mistake, 3 bad data, 5 out of memory or
    /// threads.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Data { .. } | Self::Io { .. } | Self::Findings(_) => 3,
            Self::Resources(_) => 5,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_message_carries_a_control_character() {
        let bad = "a\u{1b}[2J\u{9b}31m";
        let path = Path::new(bad);
        let io = std::io::Error::from(std::io::ErrorKind::NotFound);
        for e in [
            Error::Usage(bad.into()),
            Error::data(path, bad, bad),
            Error::io("cannot open", path)(io),
            Error::Findings(bad.into()),
            Error::Resources(bad.into()),
        ] {
            let text = e.to_string();
            assert!(text.contains(r"\u{1b}[2J") && !text.chars().any(char::is_control), "{text:?}");
        }
        let hint = Error::data(path, "x\ny", "one\nhint: two").to_string();
        assert!(hint.ends_with("x\\ny: one\nhint: two"), "a hint keeps its line: {hint}");
        assert_eq!(Error::Resources(String::new()).exit_code(), 5);
    }
}
