//! Atomic output files for writers that fail with [`Error`].

use std::fs::File;
use std::io;
use std::path::Path;

use dw_base::{Error, Result};

/// Like [`dw_base::file::write_atomically`], but `write` fails with [`Error`], which is returned
/// unchanged.
pub(crate) fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut File) -> Result<()>,
) -> Result<()> {
    let written = dw_base::file::write_atomically(path, |f| write(f).map_err(io::Error::other));
    written.map_err(|e| match e {
        Error::Io { doing, path, source } => {
            source.downcast().unwrap_or_else(|source| Error::Io { doing, path, source })
        }
        e => e,
    })
}
