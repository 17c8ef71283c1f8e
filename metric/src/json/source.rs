//! A file read at any place, so that it never lies in memory as a whole.

use std::io::{self, Read};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use crate::error::{Error, Result};

/// Most bytes that are read from a pipe, which lies in memory as a whole.
const LARGEST_PIPE: u64 = 8 << 30;

/// Where bytes come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// A regular file.
    File(std::fs::File, u64),
    /// What a pipe held.
    Memory(Vec<u8>),
}

impl Source {
    /// Opens a file or reads a pipe; `what` is for the error.
    pub(crate) fn open(path: &Path, what: &'static str) -> Result<Self> {
        let open = || {
            let mut file = fs_err::File::open(path)?;
            let meta = file.metadata()?;
            if meta.is_file() {
                return Ok(Self::File(file.into_file(), meta.len()));
            }
            if meta.file_type().is_char_device() {
                return Err(std::io::Error::other(format!(
                    "{} is a device, not a file",
                    path.display()
                )));
            }
            let mut bytes = vec![];
            (&mut file).take(LARGEST_PIPE).read_to_end(&mut bytes)?;
            if bytes.len() as u64 == LARGEST_PIPE {
                let text =
                    format!("{} holds more than {LARGEST_PIPE} bytes; use a file", path.display());
                return Err(std::io::Error::other(text));
            }
            Ok(Self::Memory(bytes))
        };
        open().map_err(Error::read(what))
    }

    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::File(_, n) => *n,
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// Appends up to `n` bytes from `at` on to `out`; fewer only at the end of the file.
    pub(crate) fn append(&self, at: u64, n: usize, out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Memory(bytes) => {
                let from = (at as usize).min(bytes.len());
                out.extend_from_slice(&bytes[from..(from + n).min(bytes.len())]);
            }
            Self::File(file, _) => {
                let mut filled = out.len();
                let end = filled + n;
                let mut at = at;
                out.resize(end, 0);
                while filled < end {
                    match file.read_at(&mut out[filled..], at) {
                        Ok(0) => break,
                        Ok(got) => (filled, at) = (filled + got, at + got as u64),
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                        Err(e) => {
                            out.truncate(filled);
                            return Err(e);
                        }
                    }
                }
                out.truncate(filled);
            }
        }
        Ok(())
    }
}
