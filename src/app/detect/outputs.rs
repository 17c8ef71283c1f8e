//! The folder of `dw-detect -o`: names of drawn pictures, and the file of all detections.

use std::collections::HashSet;
use std::fs::Permissions;
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use dw_base::file::check_folder;
use dw_base::text::shown;
use std::fs;
use tempfile::NamedTempFile;

use crate::{Error, Result};

/// Name of the file of all detections.
const LINES: &str = "detections.jsonl";

/// Creates the folder, and checks that it can be written and contains none of the pictures, so that
/// no picture is overwritten.
///
/// # Errors
/// A folder that cannot be created or written, or that contains one of the pictures.
pub fn check(folder: &Path, pictures: &[PathBuf]) -> Result<()> {
    check_folder(folder)?;
    let problem = |e| Error::io("cannot read", folder)(e);
    if fs::read_dir(folder).map_err(problem)?.next().is_none() {
        return Ok(());
    }
    let place = fs::canonicalize(folder).map_err(problem)?;
    // Compares the folder of the picture and, if it is a symbolic link, the folder of its target.
    let is_inside = |p: &&PathBuf| {
        let near = p.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::canonicalize(near).is_ok_and(|f| f == place)
            || fs::canonicalize(p).is_ok_and(|p| p.parent() == Some(place.as_path()))
    };
    // Files of the folder that are links to a picture: writing to a link replaces its target.
    let targets: HashSet<PathBuf> = fs::read_dir(folder)
        .map_err(problem)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_symlink())
        .filter_map(|path| fs::canonicalize(path).ok())
        .collect();
    let is_linked = |p: &&PathBuf| fs::canonicalize(p).is_ok_and(|p| targets.contains(&p));
    if let Some(picture) = pictures.iter().find(|p| is_inside(p) || is_linked(p)) {
        return Err(Error::Usage(format!(
            "-o {}: the picture {} is in this folder, or a link in it names it, and could be \
             overwritten\n\
             hint: choose another folder",
            shown(folder.display()),
            shown(picture.display())
        )));
    }
    Ok(())
}

/// Names of the drawn pictures, all different: `a.jpg` becomes `a.png`; if an earlier picture has
/// that name, `a.jpg.png`; if that is taken as well, `a.jpg-2.png` and so on.
pub fn names(pictures: &[PathBuf]) -> Vec<String> {
    // In lower case, because some file systems are case-insensitive.
    let mut taken = HashSet::new();
    let text = |part: Option<&std::ffi::OsStr>| {
        part.map_or_else(|| "picture".to_owned(), |p| p.to_string_lossy().into_owned())
    };
    let mut name = |picture: &PathBuf| {
        let full = text(picture.file_name());
        let short = [text(picture.file_stem()), full.clone()].into_iter();
        let numbered = (2..).map(|n| format!("{full}-{n}"));
        let mut all = short.chain(numbered).map(|stem| format!("{stem}.png"));
        all.find(|name| taken.insert(name.to_lowercase())).unwrap_or_default()
    };
    pictures.iter().map(&mut name).collect()
}

/// The file of all detections. It gets its final name once it is complete.
pub struct Lines {
    file: BufWriter<NamedTempFile>,
    path: PathBuf,
}

impl Lines {
    /// Creates the file in a folder.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn create(folder: &Path) -> Result<Self> {
        let path = folder.join(LINES);
        let file = tempfile::Builder::new()
            .prefix(".writing-")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)
            .map_err(Error::io("cannot write", &path))?;
        Ok(Self { file: BufWriter::new(file), path })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// The file cannot be written, for example because the disk is full.
    pub fn add(&mut self, line: &str) -> Result<()> {
        writeln!(self.file, "{line}").map_err(Error::io("cannot write", &self.path))
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// The file cannot be written, for example because the disk is full.
    pub fn finish(self) -> Result<()> {
        let problem = |e| Error::io("cannot write", &self.path)(e);
        let file = self.file.into_inner().map_err(|e| problem(e.into_error()))?;
        file.as_file().sync_all().map_err(problem)?;
        file.persist(&self.path).map(drop).map_err(|e| problem(e.error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_pictures_have_different_names() {
        let paths =
            ["x/a.jpg", "x/a.png", "y/a.jpg", "z/a.jpg", "A.PNG", "a.jpg.png", "b.tar.jpg", ".."];
        let found = names(&paths.map(PathBuf::from));
        let expected = [
            "a.png",
            "a.png.png",
            "a.jpg.png",
            "a.jpg-2.png",
            "A.PNG-2.png",
            "a.jpg.png.png",
            "b.tar.png",
            "picture.png",
        ];
        assert_eq!(found, expected);
        let distinct: HashSet<String> = found.iter().map(|n| n.to_lowercase()).collect();
        assert_eq!(distinct.len(), found.len(), "{found:?}");
    }
}
