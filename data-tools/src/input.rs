//! Input files: only regular files, of a limited size, inside a given folder.
//!
//! Named pipes and devices are rejected: opening a pipe blocks, and reading a device may never end.

use std::fs::{File, FileType, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use dw_base::{Error, Result};

/// Maximum size of an image file in bytes.
pub const MAX_IMAGE_BYTES: u64 = 512 << 20;
/// Maximum size in bytes of a text file: the annotations of one image, a list of images, class
/// names.
pub const MAX_TEXT_BYTES: u64 = 64 << 20;

/// Policy for images that are missing, damaged or whose size is not the annotated one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BadImages {
    /// Stop with an error that names them.
    Fail,
    /// Leave them out and count them.
    Skip,
    /// Stop, but pack damaged JPEG files as far as they can be decoded, and count them.
    Keep,
}

/// A folder of input files. Symbolic links that lead out of it are followed only with
/// `allow_outside`; the folder itself may be a link.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// `path` with symbolic links resolved.
    root: PathBuf,
    allow_outside: bool,
}

impl Folder {
    /// Opens a folder.
    ///
    /// # Errors
    /// A folder that does not exist or cannot be opened.
    pub fn open(path: &Path, allow_outside: bool) -> Result<Self> {
        let root = std::fs::canonicalize(path).map_err(Error::io("cannot open", path))?;
        Ok(Self { path: path.to_owned(), root, allow_outside })
    }

    /// The path as given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads a file of at most `limit` bytes; `None` if it is outside the folder.
    ///
    /// # Errors
    /// As [`read`].
    pub fn read(&self, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let path = self.path.join(name);
        if self.allow_outside {
            return read(&path, limit).map(Some);
        }
        // Reading the resolved path leaves no link that could be changed after the check.
        match resolve_inside(&self.root, &path)? {
            Some(real) => read(&real, limit).map(Some),
            None => Ok(None),
        }
    }

    /// Reads the first `length` bytes of a file, or all if it is shorter; `None` if it is outside
    /// the folder.
    ///
    /// # Errors
    /// As [`open`].
    pub fn head(&self, name: &str, length: u64) -> io::Result<Option<Vec<u8>>> {
        let mut path = self.path.join(name);
        if !self.allow_outside {
            match resolve_inside(&self.root, &path)? {
                Some(real) => path = real,
                None => return Ok(None),
            }
        }
        let mut bytes = vec![];
        open(&path)?.take(length).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// The error for a file that is outside the folder.
    pub fn outside(&self, name: &str) -> Error {
        let root = dw_base::text::shown(self.root.display());
        let problem = format!(
            "is a symbolic link to a file outside {root}\n\
             hint: `--allow-outside` reads files outside the folder too"
        );
        Error::data(&self.path.join(name), "", problem)
    }

    /// Reads a text file of at most [`MAX_TEXT_BYTES`], without a byte order mark.
    ///
    /// # Errors
    /// A file that is missing, outside the folder, too long, or not UTF-8.
    pub fn text(&self, name: &str) -> Result<String> {
        let path = self.path.join(name);
        let bytes = self.read(name, MAX_TEXT_BYTES).map_err(|e| {
            if e.kind() == io::ErrorKind::NotFound && path.is_symlink() {
                let problem = "is a symbolic link to a file that does not exist\n\
                               hint: fetch its contents, for example with `dvc pull` or `git annex \
                               get`";
                return Error::data(&path, "", problem);
            }
            Error::io("cannot read", &path)(e)
        })?;
        let bytes = bytes.ok_or_else(|| self.outside(name))?;
        let text = String::from_utf8(bytes)
            .map_err(|_| Error::data(&path, "", "expected text in UTF-8, found other bytes"))?;
        Ok(text.strip_prefix('\u{feff}').map_or(text.clone(), str::to_owned))
    }
}

/// Opens a regular file for reading; symbolic links are followed.
///
/// # Errors
/// `InvalidInput` with the kind of file for anything but a regular file; other I/O errors.
pub fn open(path: &Path) -> io::Result<File> {
    // Checked before opening, because opening a device can have side effects, and again afterwards
    // in case the file was replaced in between.
    check_regular(&std::fs::metadata(path)?)?;
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    check_regular(&file.metadata()?)?;
    Ok(file)
}

/// Whether an error comes from the machine or the connection to its storage rather than from the
/// file. Such an error may be temporary, so the file must not be skipped as damaged.
pub fn is_of_machine(e: &io::Error) -> bool {
    let codes =
        [libc::EIO, libc::ESTALE, libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ETIMEDOUT];
    e.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// As [`open`]; a file longer than `limit`.
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
/// I/O errors.
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
        std::fs::write(&file, "12345").unwrap();
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
