//! Atomic writes of files and folders: written to a temporary path, synced, then renamed.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Writes a file atomically. `write` fills a temporary file in the same folder, which is synced and
/// renamed to `path`, replacing an existing file, or the file that a symbolic link names. Its
/// permissions are 0666 less the umask.
///
/// # Errors
/// An error of `write`, a folder that is not writable, a full disk, a device or pipe at `path`. The
/// temporary file is removed.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<()> {
    let written = || {
        let path = target(path)?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // The error of `tempfile` would name the temporary file.
        std::fs::metadata(folder)?;
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

/// What is at a path where a folder was expected, for error messages.
pub fn no_folder(path: &Path) -> &'static str {
    if path.exists() { "expected a folder, found a file" } else { "the folder does not exist" }
}

/// The file that a write to `path` replaces.
fn target(path: &Path) -> io::Result<PathBuf> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() => path.canonicalize(),
        // root could replace /dev/null by a file.
        Ok(found) if !found.is_dir() => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "expected a regular file, found a device, pipe or socket",
        )),
        // Nothing, a folder, or a link to a file that is not there yet.
        _ => Ok(std::fs::read_link(path).map_or_else(
            |_| path.to_owned(),
            |link| path.parent().unwrap_or(Path::new("")).join(link),
        )),
    }
}

/// Writes a folder atomically. `write` fills the temporary folder `.NAME.writing` in the same
/// parent folder and must sync the files in it. The folder is then renamed to `path`; an existing
/// folder is removed immediately before.
///
/// # Errors
/// An error of `write`, a parent folder that is not writable. The temporary folder is removed.
pub fn write_folder_atomically(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let temporary = parent.join(format!(".{name}.writing"));
    let written = remove_folder(&temporary).and_then(|()| {
        std::fs::create_dir_all(&temporary).map_err(Error::io("cannot create", &temporary))?;
        write(&temporary)?;
        sync_folder(&temporary)?;
        remove_folder(path)?;
        std::fs::rename(&temporary, path).map_err(Error::io("cannot rename into", path))?;
        sync_folder(parent)
    });
    if written.is_err() {
        // Report the original error, not that of the clean-up.
        let _ = std::fs::remove_dir_all(&temporary);
    }
    written
}

/// Removes a folder and its contents, if it exists.
fn remove_folder(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("cannot remove", path)(e)),
        _ => Ok(()),
    }
}

/// Syncs a folder, so that renames in it survive a power failure.
///
/// # Errors
/// A folder that cannot be opened or synced.
pub fn sync_folder(path: &Path) -> Result<()> {
    File::open(path).and_then(|d| d.sync_all()).map_err(Error::io("cannot sync", path))
}

/// Creates a folder if it does not exist, and checks that it is writable with a temporary file.
///
/// # Errors
/// A folder that cannot be created or is not writable.
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
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let plain = dir.path().join("b");
        std::fs::write(&plain, "").unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode();
        let (inner, below) = (dir.path().join("x/y"), plain.join("z"));
        assert!(check_folder(&inner).is_ok() && check_folder(&below).is_err());
        assert_eq!(std::fs::read_dir(&inner).unwrap().count(), 0);
        assert_eq!(mode(&path), mode(&plain), "permissions of a regular new file");
    }

    #[test]
    fn links_are_followed_and_devices_are_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let [file, link, pipe] = ["a", "b", "c"].map(|name| dir.path().join(name));
        std::fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_atomically(&link, |f| f.write_all(b"new")).unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
        let _socket = std::os::unix::net::UnixListener::bind(&pipe).unwrap();
        let e = write_atomically(&pipe, |f| f.write_all(b"new")).unwrap_err();
        assert!(e.to_string().contains("regular file"), "{e}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_failed_folder_write_keeps_the_old_folder() {
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
        assert_eq!(std::fs::read(path.join("a")).unwrap(), b"old");
        write_folder_atomically(&path, with("new")).unwrap();
        assert_eq!(std::fs::read(path.join("a")).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
