//! Names of files in a data set, and the division of a set without splits.

use std::collections::HashSet;
use std::path::Path;

use dw_base::text::shown;
use dw_base::{Error, Result};
use std::fs;

use crate::boxes::check_ids;
use crate::coco::Coco;
use crate::pixels::EXTENSIONS;

/// Fraction of the images that goes to `val` by default.
pub const DEFAULT_VAL: f64 = 0.1;

/// A part of a set that has no splits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Images to train on.
    Train,
    /// Images to validate on.
    Val,
}

impl Part {
    /// Both parts.
    pub const ALL: [Self; 2] = [Self::Train, Self::Val];

    /// Name of the split.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
        }
    }
}

/// The part an image belongs to. It depends only on the file name and on `val`, the fraction of
/// [`Part::Val`], so that it is the same on every machine and does not change when other images are
/// added or removed.
pub fn part(file_name: &str, val: f64) -> Part {
    let position = f64::from(crc32c::crc32c(file_name.as_bytes())) / (f64::from(u32::MAX) + 1.0);
    if position < val { Part::Val } else { Part::Train }
}

/// The message about how a data set without splits was divided.
pub fn note(val: f64) -> String {
    format!(
        "the set has no splits: {val:.4} of the images go to `val`, the others to `train`, by a \
         checksum of the file name (`--val`)"
    )
}

/// Most images that are named for one reason.
const NAMED: usize = 100;

/// The first ones of a list, each after `prefix`, and how many more there are.
pub fn named<'a>(list: &'a [String], prefix: &'a str) -> impl Iterator<Item = String> + 'a {
    let more = list.len().saturating_sub(NAMED);
    let more = (more > 0).then(|| format!("and {more} more"));
    list.iter().take(NAMED).map(move |s| format!("{prefix}{s}")).chain(more)
}

/// Messages about images that are left out: their names with the reasons, and the number.
pub fn left_out(problems: &[String]) -> Vec<String> {
    let mut notes: Vec<String> = named(problems, "left out: ").collect();
    if !problems.is_empty() {
        notes.push(format!("{} images left out", problems.len()));
    }
    notes
}

/// Keeps one part of the images and their boxes. `file` is named in errors.
///
/// # Errors
/// No image in that part, ids that are not unique, or annotations of unknown images: the other
/// part's faults are found too.
pub fn take_part(mut coco: Coco, wanted: Part, val: f64, file: &Path) -> Result<Coco> {
    check_ids(&coco, file)?;
    coco.images.retain(|i| part(&i.file_name, val) == wanted);
    if coco.images.is_empty() {
        let problem = format!(
            "no image falls into the split `{}` with --val {val}\n\
             hint: choose another share, or write lists of your own",
            wanted.name()
        );
        return Err(Error::data(file, "", problem));
    }
    let ids: HashSet<i64> = coco.images.iter().map(|i| i.id).collect();
    coco.annotations.retain(|a| ids.contains(&a.image_id));
    Ok(coco)
}

/// Sorted names of the entries of a folder. Bytes that are not UTF-8 become replacement characters,
/// so that such names are reported rather than ignored.
///
/// # Errors
/// A folder that cannot be listed.
pub fn entries(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir).map_err(Error::io("cannot list", dir))?;
    let mut names = entries
        .map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(Error::io("cannot list", dir))?;
    names.sort();
    Ok(names)
}

/// Sorted names of the folders in `dir`, including links to folders but not hidden folders.
///
/// # Errors
/// A folder that cannot be listed.
pub fn folders(dir: &Path) -> Result<Vec<String>> {
    let mut names = entries(dir)?;
    names.retain(|n| !n.starts_with('.') && dir.join(n).is_dir());
    Ok(names)
}

/// The stem of a name that has one of `extensions`, which are in lower case; the case in the name
/// does not matter.
pub fn stem<'a>(name: &'a str, extensions: &[&str]) -> Option<&'a str> {
    let (stem, extension) = name.rsplit_once('.')?;
    let matches = extensions.contains(&extension.to_ascii_lowercase().as_str());
    (matches && !stem.is_empty() && !stem.ends_with('/')).then_some(stem)
}

/// Whether a folder has a file with one of the lower-case `extensions`.
pub fn has(dir: &Path, extensions: &[&str]) -> bool {
    let Ok(entries) = std::fs::read_dir(dir) else { return false };
    entries.flatten().any(|e| stem(&e.file_name().to_string_lossy(), extensions).is_some())
}

/// Maximum depth of folders below an image folder.
const MAX_DEPTH: usize = 16;

/// Sorted paths, relative to `dir`, of the files in `dir` and its subfolders that have one of
/// `extensions` ([`stem`]). Links to folders are followed only with `allow_outside`.
///
/// # Errors
/// A folder that cannot be listed, names that are not UTF-8, folders deeper than 16 levels (also
/// through links that form a cycle), or a link to a folder without `allow_outside`.
pub fn files(dir: &Path, extensions: &[&str], allow_outside: bool) -> Result<Vec<String>> {
    let mut found = vec![];
    walk(dir, "", extensions, allow_outside, MAX_DEPTH, &mut found)?;
    found.sort();
    Ok(found)
}

/// Adds the files in the subfolder `below` of `dir`, at any depth, to `found`.
fn walk(
    dir: &Path,
    below: &str,
    extensions: &[&str],
    allow_outside: bool,
    depth: usize,
    found: &mut Vec<String>,
) -> Result<()> {
    let here = dir.join(below);
    for entry in fs::read_dir(&here).map_err(Error::io("cannot list", &here))? {
        let entry = entry.map_err(Error::io("cannot list", &here))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            let problem = format!("`{}` is not UTF-8", shown(name.to_string_lossy()));
            return Err(Error::data(&here, "file name", problem));
        };
        if name.starts_with('.') {
            continue;
        }
        let path = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
        let kind = entry.file_type().map_err(Error::io("cannot list", &here))?;
        let is_link = kind.is_symlink() && here.join(name).is_dir();
        if is_link && !allow_outside {
            let problem = "is a symbolic link to a folder\n\
                           hint: `--allow-outside` reads linked folders too";
            return Err(Error::data(&here.join(name), "", problem));
        }
        if !kind.is_dir() && !is_link {
            if stem(name, extensions).is_some() {
                found.push(path);
            }
        } else if depth == 0 {
            let problem = format!("expected at most {MAX_DEPTH} levels of folders");
            return Err(Error::data(&here, "", problem));
        } else {
            walk(dir, &path, extensions, allow_outside, depth - 1, found)?;
        }
    }
    Ok(())
}

/// Sorted paths of the images in a folder and its subfolders, relative to the folder.
///
/// # Errors
/// As [`files`].
pub fn pictures(dir: &Path, allow_outside: bool) -> Result<Vec<String>> {
    files(dir, &EXTENSIONS, allow_outside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_of_an_image_depends_on_its_name_only() {
        let names: Vec<String> = (0..10_000).map(|n| format!("img_{n:05}.jpg")).collect();
        for val in [0.1, 0.25] {
            let count = names.iter().filter(|n| part(n, val) == Part::Val).count() as f64;
            assert!((count / 1e4 - val).abs() < 0.02, "{val}: {count}");
        }
        // A larger fraction keeps every image of a smaller one in `val`.
        assert!(names.iter().all(|n| part(n, 0.1) == Part::Train || part(n, 0.25) == Part::Val));
        assert_eq!((part("a", 0.0), part("a", 1.0)), (Part::Train, Part::Val));
    }

    #[test]
    fn stems_are_those_of_the_given_extensions() {
        assert_eq!(stem("a.b.JPG", &EXTENSIONS), Some("a.b"));
        assert_eq!(stem("x/a.webp", &EXTENSIONS), Some("x/a"));
        for other in ["a", ".jpg", "x/.jpg", "a.txt", "a.jpg.zip"] {
            assert_eq!(stem(other, &EXTENSIONS), None, "{other}");
        }
    }
}
