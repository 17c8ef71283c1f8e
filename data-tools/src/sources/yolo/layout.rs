//! Finds the images and labels of a YOLO data set.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use dw_base::text::shown;
use dw_base::{Error, Result, names};

use super::names::{Description, parse_list, parse_yaml};
use crate::input::Folder;
use crate::sources::{Search, listing};

/// Paths at which a file with one class name per line is looked for.
const NAME_LISTS: [&str; 4] = ["classes.txt", "labels/classes.txt", "classes.names", "obj.names"];

/// The description of a data set and the path of its file; `None` if the folder has none.
///
/// # Errors
/// Several YAML files with class names, an invalid description.
pub(super) fn description(
    dir: &Path,
    allow_outside: bool,
) -> Result<Option<(PathBuf, Description)>> {
    let folder = Folder::open(dir, allow_outside)?;
    let files = listing::entries(dir)?;
    let is_yaml = |f: &&String| !f.starts_with('.') && listing::stem(f, &["yaml", "yml"]).is_some();
    let mut yaml: Vec<&String> = files.iter().filter(is_yaml).collect();
    if yaml.iter().any(|f| *f == "data.yaml") {
        yaml.retain(|f| *f == "data.yaml");
    }
    let mut found = vec![];
    for name in yaml {
        // Other tools keep unrelated YAML files next to the data; it does not matter whether these
        // can be read.
        match folder.text(name) {
            Ok(text) if name == "data.yaml" || text.lines().any(|l| l.starts_with("names:")) => {
                found.push((dir.join(name), text));
            }
            Err(e) if name == "data.yaml" => return Err(e),
            _ => {}
        }
    }
    if found.len() > 1 {
        let list: Vec<String> = found.iter().map(|(p, _)| p.display().to_string()).collect();
        return Err(Error::Usage(format!(
            "found more than one YAML file with class names: {}\n\
             hint: keep one, or name it data.yaml",
            shown(list.join(", "))
        )));
    }
    if let Some((path, text)) = found.pop() {
        let description = parse_yaml(&text).map_err(|e| Error::data(&path, "", e))?;
        return Ok(Some((path, description)));
    }
    let Some(name) = NAME_LISTS.into_iter().find(|n| dir.join(n).is_file()) else {
        return Ok(None);
    };
    let path = dir.join(name);
    let description = parse_list(&folder.text(name)?).map_err(|e| Error::data(&path, "", e))?;
    Ok(Some((path, description)))
}

/// The images of one split.
#[derive(Debug)]
pub(super) struct Group {
    /// Name of the split; `None` if the set has none.
    pub(super) split: Option<String>,
    /// Folder that the names of images are relative to.
    pub(super) images_dir: PathBuf,
    /// Folder that the names of label files are relative to.
    pub(super) labels_dir: PathBuf,
    /// Names of image and label files.
    pub(super) files: Vec<(String, String)>,
    pub(super) notes: Vec<String>,
}

impl Group {
    /// Whether any image has a label file.
    pub(super) fn has_labels(&self) -> bool {
        self.files.iter().any(|(_, label)| self.has_label(label))
    }

    /// Whether a label file exists. A link to a missing file does, and so does a file whose folder
    /// cannot be searched: reading it fails, and the image is not one without objects.
    pub(super) fn has_label(&self, label: &str) -> bool {
        let found = self.labels_dir.join(label).symlink_metadata();
        !found.is_err_and(|e| e.kind() == ErrorKind::NotFound)
    }
}

/// The groups that the description names, or else those of the usual folders.
///
/// # Errors
/// Paths that do not exist inside `dir` (except those of `test`), unreadable folders, invalid
/// lists.
pub(super) fn groups(
    dir: &Path,
    file: &Path,
    description: &Description,
    search: &Search,
) -> Result<Vec<Group>> {
    if description.splits.is_empty() {
        return usual_folders(dir, search.allow_outside);
    }
    let (mut groups, mut without_test) = (vec![], None);
    for (split, paths) in &description.splits {
        match described(dir, file, description, split, paths, search)? {
            Some(group) => groups.push(group),
            None if *split == "test" => {
                let paths = shown(paths.join(", ")).to_string();
                without_test = Some(format!("`test` is left out: {paths} does not exist"));
            }
            None => {
                let paths = shown(paths.join(", ")).to_string();
                let problem = format!("expected a folder or list inside the set, found {paths}");
                return Err(Error::data(file, format!("`{split}`"), problem));
            }
        }
    }
    if let Some(group) = groups.first_mut() {
        group.notes.extend(without_test);
    }
    Ok(groups)
}

/// One split of a description; `None` if any of its paths does not exist.
fn described(
    dir: &Path,
    file: &Path,
    description: &Description,
    split: &str,
    paths: &[String],
    search: &Search,
) -> Result<Option<Group>> {
    let mut notes = vec![];
    let mut found = vec![];
    for path in paths {
        let Some(place) = locate(dir, description.path.as_deref(), path) else {
            return Ok(None);
        };
        if Path::new(path) != place {
            notes.push(format!("`{split}: {path}` is read as {}", place.display()));
        }
        found.push(place);
    }
    if let [one] = &found[..]
        && dir.join(one).is_dir()
    {
        return folder(dir.join(one), Some(split.to_owned()), notes, search.allow_outside)
            .map(Some);
    }
    let mut files = vec![];
    for place in &found {
        let base = place.to_string_lossy().into_owned();
        if dir.join(place).is_dir() {
            let below = listing::pictures(&dir.join(place), search.allow_outside)?;
            files.extend(below.into_iter().map(|name| format!("{base}/{name}")));
        } else {
            files.extend(list(dir, file, &base, search)?);
        }
    }
    let files = files.into_iter().map(|image| (image.clone(), label(&image))).collect();
    let (images_dir, labels_dir) = (dir.to_owned(), dir.to_owned());
    Ok(Some(Group { split: Some(split.to_owned()), images_dir, labels_dir, files, notes }))
}

/// The existing path, relative to `dir`, that an entry of the description refers to. Exported data
/// sets often contain paths of another machine, so a leading `..` and a `path` that does not exist
/// here are ignored.
fn locate(dir: &Path, base: Option<&str>, entry: &str) -> Option<PathBuf> {
    let clean = |p: &str| -> PathBuf {
        let parts = Path::new(p).components();
        parts.skip_while(|c| !matches!(c, std::path::Component::Normal(_))).collect()
    };
    if let Some(place) = below(dir, Path::new(entry)) {
        return Some(place);
    }
    let entry = clean(entry);
    let inside = |p: &Path| p.to_str().is_some_and(|p| names::relative(p).is_ok());
    let candidates = base.map(|b| clean(b).join(&entry)).into_iter().chain([entry.clone()]);
    candidates.into_iter().find(|p| inside(p) && dir.join(p).exists())
}

/// The part of an absolute path below `dir`; `None` for other paths and missing files.
fn below(dir: &Path, path: &Path) -> Option<PathBuf> {
    let root = dir.canonicalize().ok()?;
    let place = path.is_absolute().then(|| path.canonicalize().ok())??;
    let place = place.strip_prefix(root).ok()?;
    place.to_str().is_some_and(|p| names::relative(p).is_ok()).then(|| place.to_owned())
}

/// The images of a list file, relative to `dir`.
fn list(dir: &Path, file: &Path, name: &str, search: &Search) -> Result<Vec<String>> {
    let text = Folder::open(dir, search.allow_outside)?.text(name)?;
    let base = Path::new(name).parent().unwrap_or(Path::new(""));
    let mut images = vec![];
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let beside = base.join(line.trim_start_matches("./"));
        let absolute = below(dir, Path::new(line)).unwrap_or_default();
        let candidates =
            [&beside, Path::new(line), &absolute].map(|p| p.to_string_lossy().into_owned());
        let inside = |p: &&String| names::relative(p).is_ok() && dir.join(p).is_file();
        let Some(image) = candidates.iter().find(inside) else {
            let problem = format!(
                "expected an image inside {}, found `{}` (listed by {})",
                shown(dir.display()),
                shown(line),
                shown(file.display())
            );
            return Err(Error::data(&dir.join(name), format!("line {number}"), problem));
        };
        images.push(image.clone());
    }
    Ok(images)
}

/// A folder of images as a split. Its labels are in the folder whose path has `labels` in place of
/// the last `images`, or next to the images.
fn folder(
    images_dir: PathBuf,
    split: Option<String>,
    mut notes: Vec<String>,
    allow_outside: bool,
) -> Result<Group> {
    let labels_dir = replaced(&images_dir).filter(|d| d.is_dir()).unwrap_or(images_dir.clone());
    let names = listing::pictures(&images_dir, allow_outside)?;
    let files: Vec<_> = names.into_iter().map(|n| (n.clone(), with_txt(&n))).collect();
    if labels_dir != images_dir {
        let used: HashSet<&str> = files.iter().map(|(_, label)| label.as_str()).collect();
        let lone = listing::files(&labels_dir, &["txt"], allow_outside)?;
        let lone = lone.iter().filter(|l| !used.contains(l.as_str()) && *l != "classes.txt");
        if let count @ 1.. = lone.count() {
            let folder = shown(labels_dir.display());
            notes.push(format!("{count} label files in {folder} have no image: not used"));
        }
    }
    Ok(Group { split, images_dir, labels_dir, files, notes })
}

/// The path with `labels` in place of its last component `images`.
fn replaced(path: &Path) -> Option<PathBuf> {
    let parts: Vec<_> = path.components().map(std::path::Component::as_os_str).collect();
    let at = parts.iter().rposition(|p| *p == "images")?;
    let part = |(n, p)| if n == at { std::ffi::OsStr::new("labels") } else { p };
    Some(parts.into_iter().enumerate().map(part).collect())
}

/// The label file of an image; both paths are relative to the data set.
fn label(image: &str) -> String {
    let path = replaced(Path::new(image)).unwrap_or_else(|| image.into());
    with_txt(&path.to_string_lossy())
}

fn with_txt(name: &str) -> String {
    Path::new(name).with_extension("txt").to_string_lossy().into_owned()
}

/// The groups of `images/SPLIT`, `SPLIT/images`, or of one folder without splits.
fn usual_folders(dir: &Path, allow_outside: bool) -> Result<Vec<Group>> {
    let images = dir.join("images");
    let below = if images.is_dir() { listing::folders(&images)? } else { vec![] };
    if !below.is_empty() && !listing::has(&images, &crate::pixels::EXTENSIONS) {
        let group = |n: String| folder(images.join(&n), Some(n), vec![], allow_outside);
        return below.into_iter().map(group).collect();
    }
    if images.is_dir() {
        return Ok(vec![folder(images, None, vec![], allow_outside)?]);
    }
    let mut splits = listing::folders(dir)?;
    splits.retain(|n| dir.join(n).join("images").is_dir());
    if !splits.is_empty() {
        let group = |n: String| folder(dir.join(&n).join("images"), Some(n), vec![], allow_outside);
        return splits.into_iter().map(group).collect();
    }
    Ok(vec![folder(dir.to_owned(), None, vec![], allow_outside)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_in_the_folder_beside_the_last_images() {
        assert_eq!(label("a/images/images/x.y.jpg"), "a/images/labels/x.y.txt");
        assert_eq!(label("x.jpg"), "x.txt");
    }

    #[test]
    fn paths_of_a_description_never_leave_the_set() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("train/images")).unwrap();
        let found = |base, entry| locate(dir.path(), base, entry);
        assert_eq!(found(None, "../train/images"), Some("train/images".into()));
        assert_eq!(found(Some("../datasets/x"), "train/images"), Some("train/images".into()));
        for bad in ["/etc", "../../etc", "train/../../..", "..", "", "/"] {
            assert_eq!(found(None, bad), None, "{bad}");
        }
    }
}
