//! Files that are whole or not there: written beside their place, synced, renamed.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Writes a file by `write`, which gets an empty file in the same folder; renames it to `path` when it
/// is complete and on disk. A file that was there stays until then. The permissions are those of a new
/// file (0666 less the umask).
///
/// # Errors
/// What `write` fails with; a folder that cannot be written; a full disk. Nothing is left behind.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".writing-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)?;
    write(file.as_file_mut())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// Makes a folder where there is none, and finds out whether files can be made in it; leaves none behind.
///
/// # Errors
/// A folder that cannot be made or written.
pub fn check_folder(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    tempfile::tempfile_in(folder).map(drop)
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
}
