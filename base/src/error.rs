//! The error type of all crates, and the exit code of each kind of error.
//!
//! A message says what was being done, which file and field, what was expected and found, and ends
//! with a line `hint: ...` where one helps. Messages quote names from files: control characters in
//! them are escaped when an error is printed, so that they cannot reach a terminal.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use crate::exit;
use crate::failure::{Failure, classify};
use crate::text::{lines, shown};

/// Result of everything that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong. [`Error::exit_code`] has the exit code of each variant.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A mistake of the user: command line, configuration or environment.
    #[error("{}", lines(.0))]
    Usage(String),
    /// A file holds something it must not.
    #[error("{}: {}{}", shown(path.display()), at(place), lines(problem))]
    Data {
        /// File that holds the problem.
        path: PathBuf,
        /// Field, record, line or offset in the file; empty: the file as a whole.
        place: String,
        /// Expected and found.
        problem: String,
    },
    /// Several findings in data, or files that do not fit together.
    #[error("{}", lines(.0))]
    Inconsistent(String),
    /// The operating system could not read or write a file.
    #[error("{doing} {}: {source}", shown(path.display()))]
    Io {
        /// What was being done, as "cannot read".
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A loss or a gradient is not a finite number.
    #[error("{}", lines(.0))]
    NotFinite(String),
    /// Another rank was lost, or a collective failed or timed out.
    #[error("{}", lines(.0))]
    Peer(String),
    /// This rank's GPU, its driver or its links failed.
    #[error("{}\n{}", lines(.0), Failure::Device.hint())]
    Device(String),
    /// Memory of the host or of a GPU ran out.
    #[error("{}", lines(.0))]
    OutOfMemory(String),
    /// The system refused a thread, process or file descriptor.
    #[error("{}", lines(.0))]
    OutOfResources(String),
    /// The run was stopped by a signal and has saved its state.
    #[error("{}", lines(.0))]
    Preempted(String),
    /// Something that cannot happen unless the program is wrong.
    #[error("{}", lines(.0))]
    Bug(String),
}

/// What to do when the system refuses a thread, process or descriptor.
const LIMITS: &str = "hint: a limit of this user, container or machine is reached (ulimit -u, the \
                      cgroup's pids.max, memory); fewer ranks or threads need less";

impl Error {
    /// Bad contents of a file. `place`: field, record, line or offset; empty for the whole file.
    pub fn data(path: &Path, place: impl Into<String>, problem: impl Display) -> Self {
        Self::Data { path: path.to_owned(), place: place.into(), problem: problem.to_string() }
    }

    /// A failed operation on a file, for `map_err`. `doing` as "cannot read".
    pub fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    /// A failed system call that is not about a file: [`Error::OutOfMemory`] or
    /// [`Error::OutOfResources`] where the system ran out of something, else what `otherwise` makes
    /// of the message.
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

    /// Threads that could not be started; `what` as "the thread `dw-watchdog`".
    pub fn threads(what: &str, e: &dyn Display) -> Self {
        Self::OutOfResources(format!("cannot start {what}: {e}\n{LIMITS}"))
    }

    /// A failure that a library (libtorch, CUDA, NCCL) reports only as text. This is the one place
    /// where text decides a variant; anything unknown is a [`Error::Bug`].
    pub fn from_library(text: &str) -> Self {
        let explained = |f: Failure| format!("{text}\n{}\n{}", f.describe(), f.hint());
        match classify(text) {
            Some(f @ Failure::Memory) => Self::OutOfMemory(explained(f)),
            Some(f @ Failure::Threads) => Self::OutOfResources(explained(f)),
            Some(f @ Failure::Device) => Self::Device(format!("{text}\n{}", f.describe())),
            None => Self::Bug(text.to_owned()),
        }
    }

    /// Whether this machine ran out of memory, threads, processes or descriptors: no peer is to
    /// blame.
    pub fn is_out_of_resources(&self) -> bool {
        matches!(self, Self::OutOfMemory(_) | Self::OutOfResources(_))
    }

    /// The exit code of a program that ends with this error, one of [`exit`].
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Usage(_) => exit::USAGE,
            Self::Data { .. } | Self::Inconsistent(_) | Self::Io { .. } | Self::NotFinite(_) => {
                exit::DATA
            }
            Self::Peer(_) | Self::Device(_) => exit::PEER,
            Self::OutOfMemory(_) | Self::OutOfResources(_) => exit::RESOURCES,
            Self::Preempted(_) => exit::PREEMPTED,
            Self::Bug(_) => exit::BUG,
        }
    }
}

/// The place of a problem with its separator; nothing where the whole file is meant.
fn at(place: &str) -> String {
    if place.is_empty() { String::new() } else { format!("{}: ", shown(place)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_hold_no_control_characters() {
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
        assert!(hint.ends_with("x\\ny: one\nhint: two"), "a hint is a line of its own: {hint}");
        assert_eq!(Error::data(Path::new("f"), "", "empty").to_string(), "f: empty");
    }

    #[test]
    fn text_of_libraries_becomes_a_variant() {
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
    fn a_limit_of_the_system_is_no_mistake_of_the_user() {
        let error = |code| io::Error::from_raw_os_error(code);
        let usage = |code| Error::system("cannot start mpirun", &error(code), Error::Usage);
        assert_eq!(usage(libc::ENOENT).exit_code(), exit::USAGE);
        assert!(matches!(usage(libc::ENOMEM), Error::OutOfMemory(_)));
        assert!(usage(libc::EAGAIN).is_out_of_resources());
    }
}
