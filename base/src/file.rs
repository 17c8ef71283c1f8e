//! Files and folders that are whole or not there: written beside their place, synced, renamed.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::error::{Error, Result};

/// Writes a file through `write`, which gets an empty file in the same folder, and renames it to
/// `path` when it is complete and on disk. An existing file stays until then. The permissions are
/// those of a new file (0666 less the umask).
///
/// # Errors
/// What `write` fails with, a folder that cannot be written, a full disk. Nothing is left behind.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let written = || {
        let mut file = tempfile::Builder::new()
            .prefix(".writing-")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)?;
        write(file.as_file_mut())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        Ok(())
    };
    written().map_err(Error::io("cannot write", path))
}

/// Creates a folder through `write`, which gets an empty folder beside it, `.NAME.writing`, and
/// renames that to `path`, replacing what was there. Files in it must be synced by `write`.
///
/// # Errors
/// What `write` fails with, or a folder that cannot be written. Nothing half-written is left.
pub fn write_folder_atomically(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let aside = parent.join(format!(".{name}.writing"));
    let written = remove_folder(&aside).and_then(|()| {
        std::fs::create_dir_all(&aside).map_err(Error::io("cannot create", &aside))?;
        write(&aside)?;
        sync_folder(&aside)?;
        remove_folder(path)?;
        std::fs::rename(&aside, path).map_err(Error::io("cannot rename into", path))?;
        sync_folder(parent)
    });
    if written.is_err() {
        // The first error is the one to report.
        let _ = std::fs::remove_dir_all(&aside);
    }
    written
}

/// Removes a folder with its contents, if there is one.
fn remove_folder(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("cannot remove", path)(e)),
        _ => Ok(()),
    }
}

/// Makes renames inside a folder survive a power failure.
///
/// # Errors
/// What the system reports.
pub fn sync_folder(path: &Path) -> Result<()> {
    File::open(path).and_then(|d| d.sync_all()).map_err(Error::io("cannot sync", path))
}

/// Creates a folder where there is none, and checks that files can be created in it; leaves none
/// behind.
///
/// # Errors
/// A folder that cannot be created or written.
pub fn check_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io("cannot create", folder))?;
    tempfile::tempfile_in(folder).map(drop).map_err(Error::io("cannot write into", folder))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_atomically(&path, |f| f.write_all(b"old")).unwrap();
        let failed = write_atomically(&path, |f| {
            f.write_all(b"ne")?;
            Err(io::Error::other("disk full"))
        });
        assert!(failed.is_err());
        assert_eq!(fs_err::read(&path).unwrap(), b"old");
        assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 1);
        let plain = dir.path().join("b");
        fs_err::write(&plain, "").unwrap();
        let mode = |p: &Path| fs_err::metadata(p).unwrap().permissions().mode();
        let (inner, below) = (dir.path().join("x/y"), plain.join("z"));
        assert!(check_folder(&inner).is_ok() && check_folder(&below).is_err());
        assert_eq!(fs_err::read_dir(&inner).unwrap().count(), 0);
        assert_eq!(mode(&path), mode(&plain), "readable by those who could read an ordinary file");
    }

    #[test]
    fn a_folder_is_replaced_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("step-1");
        let with = |text: &'static str| {
            move |d: &Path| std::fs::write(d.join("a"), text).map_err(Error::io("cannot write", d))
        };
        write_folder_atomically(&path, with("old")).unwrap();
        let failed = write_folder_atomically(&path, |d| {
            with("new")(d)?;
            Err(Error::Usage("stopped".into()))
        });
        assert!(failed.is_err());
        assert_eq!(fs_err::read(path.join("a")).unwrap(), b"old");
        write_folder_atomically(&path, with("new")).unwrap();
        assert_eq!(fs_err::read(path.join("a")).unwrap(), b"new");
        assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 1);
    }
}
