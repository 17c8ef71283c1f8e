//! The pictures that the command line of `dw-detect` names.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use dw_base::text::shown;
use dw_shards::pixels::EXTENSIONS;
use std::fs;

use crate::{Error, Result};

/// All pictures, in the order of the arguments: a picture, the pictures of a folder sorted by name,
/// or for `-` the pictures that standard input lists. Only folders are read; whether a picture
/// exists is not checked.
///
/// # Errors
/// A folder without pictures or that cannot be read, or no picture at all.
pub fn list(args: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut all = vec![];
    for arg in args {
        if arg.as_os_str() == "-" {
            let mut text = vec![];
            let problem = Error::io("cannot read", Path::new("standard input"));
            std::io::stdin().lock().read_to_end(&mut text).map_err(problem)?;
            if text.contains(&0) {
                return Err(Error::Usage(
                    "standard input: expected one path per line, found a NUL byte\n\
                     hint: use find without -print0"
                        .into(),
                ));
            }
            all.extend(lines(&text));
        } else if arg.is_dir() {
            all.extend(in_folder(arg)?);
        } else {
            all.push(arg.clone());
        }
    }
    if all.is_empty() {
        return Err(Error::Usage(
            "no pictures: standard input lists none\nhint: expected paths, one per line".into(),
        ));
    }
    Ok(all)
}

/// The paths in a text, one per line; empty lines are skipped.
fn lines(text: &[u8]) -> Vec<PathBuf> {
    text.split(|b| *b == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .filter(|line| !line.is_empty())
        .map(|line| PathBuf::from(OsString::from_vec(line.to_vec())))
        .collect()
}

/// The pictures of a folder, sorted by name; logs what else is in it. Subfolders are not entered.
fn in_folder(folder: &Path) -> Result<Vec<PathBuf>> {
    let problem = |e| Error::io("cannot read", folder)(e);
    let (mut pictures, mut files, mut folders) = (vec![], 0, 0);
    for entry in fs::read_dir(folder).map_err(problem)? {
        let path = entry.map_err(problem)?.path();
        let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase());
        if path.is_dir() {
            folders += 1;
        } else if path.file_name().is_some_and(|n| n.as_bytes().starts_with(b".")) {
            // Such as `._a.jpg`, which macOS writes next to `a.jpg`.
            files += 1;
        } else if ending.is_some_and(|e| EXTENSIONS.contains(&e.as_str())) {
            pictures.push(path);
        } else {
            files += 1;
        }
    }
    pictures.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    let name = shown(folder.display());
    let others = format!("{files} other files and {folders} folders");
    if pictures.is_empty() {
        return Err(Error::Usage(format!(
            "{name}: no pictures in this folder, found {others}\n\
             hint: expected files that end in .{}; folders in it are not entered",
            EXTENSIONS.join(", .")
        )));
    }
    if files + folders > 0 {
        tracing::info!("{name}: {} pictures; not read: {others}", pictures.len());
    }
    Ok(pictures)
}

/// The list as bytes, for the other ranks.
pub fn to_bytes(pictures: &[PathBuf]) -> Vec<u8> {
    let paths: Vec<&[u8]> = pictures.iter().map(|p| p.as_os_str().as_bytes()).collect();
    paths.join(&0)
}

/// Inverse of [`to_bytes`].
pub fn from_bytes(bytes: &[u8]) -> Vec<PathBuf> {
    bytes.split(|b| *b == 0).map(|p| PathBuf::from(OsString::from_vec(p.to_vec()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_paths_keep_every_byte_and_the_order() {
        let paths = lines(b"b c.jpg\r\n\n/x/\xff.png\na\n");
        assert_eq!(paths.len(), 3);
        assert_eq!((paths[0].to_str(), paths[2].to_str()), (Some("b c.jpg"), Some("a")));
        assert_eq!(paths[1].as_os_str().as_bytes(), b"/x/\xff.png");
        assert_eq!(from_bytes(&to_bytes(&paths)), paths);
    }
}
