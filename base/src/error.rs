//! The error type of all crates and the exit code of each kind of error.
//!
//! A message states the operation, the file and field, the expected and the actual value, and may
//! end with a line `hint: ...`. Control characters in messages are escaped on display, because they
//! may quote untrusted files.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use crate::exit;
use crate::failure::{Failure, classify};
use crate::text::{lines, shown};

/// `Result` with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Error of any `dw` crate. [`Error::exit_code`] maps each variant to an exit code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An error in the command line, the configuration or the environment.
    #[error("{}", lines(.0))]
    Usage(String),
    /// Invalid contents of a file.
    #[error("{}: {}{}", shown(path.display()), at(place), lines(problem))]
    Data {
        /// Path of the file.
        path: PathBuf,
        /// Field, record, line or offset in the file; empty for the whole file.
        place: String,
        /// Description of the problem, with the expected and the actual value.
        problem: String,
    },
    /// Several problems in a data set, or files that are inconsistent with each other.
    #[error("{}", lines(.0))]
    Inconsistent(String),
    /// A failed file operation.
    #[error("{doing} {}: {source}{}", shown(path.display()), hint_of_limits(source))]
    Io {
        /// The failed operation, such as "cannot read".
        doing: &'static str,
        /// Path of the file or folder.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// A loss or gradient is not finite.
    #[error("{}", lines(.0))]
    NotFinite(String),
    /// Another rank was lost, or a collective failed or timed out.
    #[error("{}", lines(.0))]
    Peer(String),
    /// The GPU of this rank, its driver or its links failed.
    #[error("{}\n{}", lines(.0), Failure::Device.hint())]
    Device(String),
    /// Out of host or GPU memory.
    #[error("{}", lines(.0))]
    OutOfMemory(String),
    /// The system could not provide a thread, process or file descriptor.
    #[error("{}", lines(.0))]
    OutOfResources(String),
    /// The run was preempted by a signal after writing a checkpoint.
    #[error("{}", lines(.0))]
    Preempted(String),
    /// A process that this program started has failed.
    #[error("{}", lines(text))]
    Child {
        /// Its exit code.
        code: i32,
        /// Which process, and what it reported.
        text: String,
    },
    /// A bug in the program.
    #[error("{}", lines(.0))]
    Bug(String),
}

/// Hint for exhausted memory, threads, processes and file descriptors.
const LIMITS: &str = "hint: a limit of the user, container or machine was reached (ulimit -u, \
                      pids.max of the cgroup, memory); use fewer ranks or threads";

impl Error {
    /// Creates an [`Error::Data`]. `place` is a field, record, line or offset, or empty for the
    /// whole file.
    pub fn data(path: &Path, place: impl Into<String>, problem: impl Display) -> Self {
        Self::Data { path: path.to_owned(), place: place.into(), problem: problem.to_string() }
    }

    /// Creates a function for `map_err` that returns [`Error::Io`]. `doing` is the failed
    /// operation, such as "cannot read".
    pub fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    /// Converts the error of a system call that does not concern a file: ENOMEM to
    /// [`Error::OutOfMemory`]; EAGAIN, EMFILE and ENFILE to [`Error::OutOfResources`]; others with
    /// `otherwise`, which gets the message.
    pub fn system(doing: &str, e: &io::Error, otherwise: impl FnOnce(String) -> Self) -> Self {
        let text = format!("{doing}: {e}");
        match e.raw_os_error() {
            Some(libc::ENOMEM) => Self::OutOfMemory(format!("{text}\n{LIMITS}")),
            Some(libc::EAGAIN | libc::EMFILE | libc::ENFILE) => {
                Self::OutOfResources(format!("{text}\n{LIMITS}"))
            }
            _ => otherwise(text),
        }
    }

    /// Creates an [`Error::OutOfResources`] for a thread or thread pool that could not be started.
    /// `what` is a noun phrase such as "the thread `dw-watchdog`".
    pub fn threads(what: &str, e: &dyn Display) -> Self {
        Self::OutOfResources(format!("cannot start {what}: {e}\n{LIMITS}"))
    }

    /// Converts the error message of a library (libtorch, CUDA, NCCL) that has no error codes.
    /// Unrecognised messages become [`Error::Bug`].
    pub fn from_library(text: &str) -> Self {
        let explained = |f: Failure| format!("{text}\n{}\n{}", f.describe(), f.hint());
        match classify(text) {
            Some(f @ Failure::Memory) => Self::OutOfMemory(explained(f)),
            Some(f @ Failure::Threads) => Self::OutOfResources(explained(f)),
            Some(f @ Failure::Device) => Self::Device(format!("{text}\n{}", f.describe())),
            None => Self::Bug(text.to_owned()),
        }
    }

    /// The exit code of a program that ends with this error, one of [`exit`].
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Usage(_) => exit::USAGE,
            Self::Io { source, .. } if is_limit(source) => exit::RESOURCES,
            Self::Data { .. } | Self::Inconsistent(_) | Self::Io { .. } | Self::NotFinite(_) => {
                exit::DATA
            }
            Self::Peer(_) | Self::Device(_) => exit::PEER,
            Self::OutOfMemory(_) | Self::OutOfResources(_) => exit::RESOURCES,
            Self::Preempted(_) => exit::PREEMPTED,
            Self::Child { code, .. } => *code,
            Self::Bug(_) => exit::BUG,
        }
    }
}

/// Whether a file operation failed because memory or file descriptors ran out.
fn is_limit(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOMEM | libc::EMFILE | libc::ENFILE))
}

fn hint_of_limits(e: &io::Error) -> String {
    if is_limit(e) { format!("\n{LIMITS}") } else { String::new() }
}

/// Formats the place of a problem as a prefix; empty if the whole file is meant.
fn at(place: &str) -> String {
    if place.is_empty() { String::new() } else { format!("{}: ", shown(place)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_no_control_characters() {
        let bad = "a\u{1b}[2J\u{9b}31m";
        let path = Path::new(bad);
        let missing = io::Error::from(io::ErrorKind::NotFound);
        for e in [
            Error::Usage(bad.into()),
            Error::data(path, bad, bad),
            Error::io("cannot open", path)(missing),
            Error::Inconsistent(bad.into()),
            Error::Peer(bad.into()),
            Error::OutOfMemory(bad.into()),
        ] {
            let text = e.to_string();
            assert!(text.contains(r"\u{1b}[2J") && !text.chars().any(char::is_control), "{text:?}");
        }
        let hint = Error::data(path, "x\ny", "one\nhint: two").to_string();
        assert!(hint.ends_with("x\\ny: one\nhint: two"), "the hint is a separate line: {hint}");
        assert_eq!(Error::data(Path::new("f"), "", "empty").to_string(), "f: empty");
    }

    #[test]
    fn library_messages_are_classified() {
        for (text, code) in [
            ("CUDA out of memory. Tried to allocate 2.00 GiB", exit::RESOURCES),
            ("failed to spawn thread: Os { code: 11 }", exit::RESOURCES),
            ("CUDA error: uncorrectable ECC error encountered", exit::PEER),
            ("CUDA error: an illegal memory access was encountered", exit::BUG),
        ] {
            let e = Error::from_library(text);
            assert_eq!(e.exit_code(), code, "{text}");
            assert!(e.to_string().starts_with(text), "{e}");
        }
        let text = Error::from_library("CUDA out of memory").to_string();
        assert!(text.contains("hint: "), "{text}");
    }

    #[test]
    fn exhausted_system_limits_are_not_usage_errors() {
        let error = |code| io::Error::from_raw_os_error(code);
        let usage = |code| Error::system("cannot start mpirun", &error(code), Error::Usage);
        assert_eq!(usage(libc::ENOENT).exit_code(), exit::USAGE);
        let file = |source| Error::io("cannot open", Path::new("f"))(source);
        assert_eq!(file(error(libc::EMFILE)).exit_code(), exit::RESOURCES);
        assert_eq!(file(error(libc::ENOENT)).exit_code(), exit::DATA);
        assert!(matches!(usage(libc::ENOMEM), Error::OutOfMemory(_)));
        assert_eq!(usage(libc::EAGAIN).exit_code(), exit::RESOURCES);
    }
}
