//! Files from elsewhere: regular files only, of a bounded size, inside the folder they belong to.
//!
//! A named pipe would block whoever opens it and a device has no end, so neither is ever opened.

use std::fs::{File, FileType, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Most bytes of a picture's file.
pub const LARGEST_PICTURE: u64 = 512 << 20;

/// Opens a regular file for reading; links are followed. Never blocks on a named pipe.
///
/// # Errors
/// Anything but a regular file, with what it is; what the system said.
pub fn open(path: &Path) -> io::Result<File> {
    // Before it is opened, because opening alone has effects on some devices; and after, because
    // the name may mean another file by then.
    regular(&std::fs::metadata(path)?)?;
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    regular(&file.metadata()?)?;
    Ok(file)
}

/// The whole of a regular file of at most `limit` bytes.
///
/// # Errors
/// As [`open`]; a longer file.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let too_long = |n: u64| {
        io::Error::other(format!("it has {n} bytes or more, the limit is {} MiB", limit >> 20))
    };
    let length = file.metadata()?.len();
    if length > limit {
        return Err(too_long(length));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    // It may grow while it is read.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(too_long(bytes.len() as u64));
    }
    Ok(bytes)
}

/// `path` without links, which must lie in `root` (which has none).
///
/// # Errors
/// What the system said; `Ok(None)` when it lies elsewhere.
pub fn resolve_inside(root: &Path, path: &Path) -> io::Result<Option<PathBuf>> {
    let real = std::fs::canonicalize(path)?;
    Ok(real.starts_with(root).then_some(real))
}

fn regular(of: &Metadata) -> io::Result<()> {
    if of.is_file() {
        return Ok(());
    }
    let found = kind(of.file_type());
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("expected a regular file, found {found}"),
    ))
}

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
        "something else"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regular_files_of_a_bounded_size_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        fs_err::write(&file, "12345").unwrap();
        assert_eq!(read(&file, 5).unwrap(), b"12345");
        assert!(read(&file, 4).unwrap_err().to_string().contains("the limit"));
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
