//! Input files: only regular files, of a limited size, inside a given folder.
//!
//! Opening a named pipe blocks and a device may have no end, so both are rejected.

use std::fs::{File, FileType, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Most bytes of an image file.
pub const MAX_IMAGE_BYTES: u64 = 512 << 20;

/// Opens a regular file for reading; symbolic links are followed.
///
/// # Errors
/// `InvalidInput` with the kind of file for anything but a regular file; errors of the system.
pub fn open(path: &Path) -> io::Result<File> {
    // Checked before opening, which can have side effects on devices, and again afterwards in case
    // the file was replaced in between.
    check_regular(&std::fs::metadata(path)?)?;
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    check_regular(&file.metadata()?)?;
    Ok(file)
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// As [`open`], and a longer file.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let too_long = |n: u64| {
        io::Error::other(format!("expected at most {} MiB, found {n} bytes or more", limit >> 20))
    };
    let length = file.metadata()?.len();
    if length > limit {
        return Err(too_long(length));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    // The file may grow while it is read.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(too_long(bytes.len() as u64));
    }
    Ok(bytes)
}

/// Resolves the symbolic links of `path`. `None` if the result is outside `root`, which must be
/// resolved already.
///
/// # Errors
/// Errors of the system.
pub fn resolve_inside(root: &Path, path: &Path) -> io::Result<Option<PathBuf>> {
    let real = std::fs::canonicalize(path)?;
    Ok(real.starts_with(root).then_some(real))
}

/// Rejects anything but a regular file.
fn check_regular(of: &Metadata) -> io::Result<()> {
    if of.is_file() {
        return Ok(());
    }
    let found = kind(of.file_type());
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("expected a regular file, found {found}"),
    ))
}

/// The kind of a file that is not regular.
fn kind(t: FileType) -> &'static str {
    if t.is_dir() {
        "a folder"
    } else if t.is_fifo() {
        "a pipe (FIFO)"
    } else if t.is_socket() {
        "a socket"
    } else if t.is_char_device() || t.is_block_device() {
        "a device"
    } else {
        "another kind of file"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_a_limited_size_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        fs_err::write(&file, "12345").unwrap();
        assert_eq!(read(&file, 5).unwrap(), b"12345");
        assert!(read(&file, 4).unwrap_err().to_string().contains("5 bytes"));
        let fifo = dir.path().join("fifo");
        let name = std::ffi::CString::new(fifo.to_str().unwrap()).unwrap();
        // SAFETY: a valid, terminated path.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        for (path, word) in
            [(&*fifo, "FIFO"), (Path::new("/dev/zero"), "device"), (dir.path(), "folder")]
        {
            let text = read(path, 5).unwrap_err().to_string();
            assert!(text.contains("regular file") && text.contains(word), "{text}");
        }
    }
}
