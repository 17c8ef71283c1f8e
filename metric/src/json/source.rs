//! Random access to a file, so that it is never held in memory as a whole.

use std::io::{self, Read};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use dw_base::{Error, Result};

/// Limit on the bytes read from a pipe, which are held in memory.
const MAX_PIPE: u64 = 8 << 30;

/// A file or the contents of a pipe.
#[derive(Debug)]
pub(crate) enum Source {
    /// A regular file and its length in bytes.
    File(std::fs::File, u64),
    /// The contents of a pipe.
    Memory(Vec<u8>),
}

impl Source {
    /// Opens a file, or reads a pipe to its end.
    ///
    /// # Errors
    /// [`Error::Usage`], which names the contents by `what`, for a file that cannot be read, a
    /// device, or a pipe with 8 GiB or more.
    pub(crate) fn open(path: &Path, what: &'static str) -> Result<Self> {
        let doing = format!("cannot read the {what} {}", path.display());
        Self::read(path).map_err(|e| Error::system(&doing, &e, Error::Usage))
    }

    fn read(path: &Path) -> io::Result<Self> {
        let mut file = std::fs::File::open(path)?;
        let meta = file.metadata()?;
        if meta.is_file() {
            return Ok(Self::File(file, meta.len()));
        }
        let kind = meta.file_type();
        if kind.is_char_device() || kind.is_block_device() {
            return Err(io::Error::other("expected a file or a pipe, found a device"));
        }
        let mut bytes = vec![];
        (&mut file).take(MAX_PIPE).read_to_end(&mut bytes)?;
        if bytes.len() as u64 == MAX_PIPE {
            let text = format!(
                "expected less than {MAX_PIPE} bytes from a pipe, found more\n\
                 hint: write them to a file"
            );
            return Err(io::Error::other(text));
        }
        Ok(Self::Memory(bytes))
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::File(_, n) => *n,
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// Appends `n` bytes from offset `at` to `out`; fewer only at the end of the file.
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
