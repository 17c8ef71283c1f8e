//! Which splits a COCO folder has, and where their annotations and images are.

use std::path::{Path, PathBuf};

use dw_base::text::shown;
use fs_err as fs;

use crate::coco;
use crate::error::{Error, Result};
use crate::meaning::split_name;

/// Beginnings of annotation files: with boxes, and lists of images alone (COCO's test sets), which
/// are packed when named.
const FILES: [&str; 2] = ["instances_", coco::IMAGES_ALONE];

/// The annotation file of a split.
pub(super) fn annotation_file(dir: &Path, split: &str) -> PathBuf {
    let path = |start: &str| dir.join("annotations").join(format!("{start}{split}.json"));
    FILES.map(path).into_iter().find(|p| p.exists()).unwrap_or_else(|| path(FILES[0]))
}

/// The splits of a COCO folder: every `annotations/instances_NAME.json`, or the named ones (also
/// `image_info_NAME.json`).
///
/// # Errors
/// No such folder, no annotation file, a name that has none, is given twice or cannot be a file's.
pub fn find_splits(dir: &Path, only: &[String]) -> Result<Vec<String>> {
    let annotations = dir.join("annotations");
    let at = shown(dir.display());
    if !dir.is_dir() {
        return Err(Error::Usage(format!("cannot pack {at}: the folder does not exist")));
    }
    if !annotations.is_dir() {
        let text = "expected a COCO folder with annotations/instances_SPLIT.json and a folder \
                    SPLIT of images";
        return Err(Error::Usage(format!(
            "cannot pack {at}: it has no folder `annotations`\nhint: {text}"
        )));
    }
    let at = shown(annotations.display());
    for (n, name) in only.iter().enumerate() {
        if let Err(problem) = split_name(name) {
            return Err(Error::Usage(format!("--split: the name `{}` {problem}", shown(name))));
        }
        if only[..n].contains(name) {
            return Err(Error::Usage(format!("--split: `{name}` is given twice")));
        }
    }
    let files = file_names(&annotations)?;
    let splits = |start: &str| {
        let middle = |f: &String| Some(f.strip_prefix(start)?.strip_suffix(".json")?.to_owned());
        files.iter().filter_map(middle).collect::<Vec<_>>()
    };
    let [mut found, images_alone] = FILES.map(splits);
    found.sort();
    if found.is_empty() && only.is_empty() {
        return Err(Error::Usage(format!("cannot pack {at}: found no instances_SPLIT.json")));
    }
    for name in only {
        if !found.contains(name) && !images_alone.contains(name) {
            let all = [found, images_alone].concat().join(", ");
            return Err(Error::Usage(format!(
                "no split `{name}` in {at}: it holds {}",
                shown(all)
            )));
        }
    }
    if !only.is_empty() {
        return Ok(only.to_vec());
    }
    for name in &found {
        if let Err(problem) = split_name(name) {
            let name = shown(name);
            return Err(Error::Usage(format!(
                "cannot pack {at}/instances_{name}.json: the split's name `{name}` {problem}\n\
                 hint: rename the file, or name the splits to pack with --split"
            )));
        }
    }
    Ok(found)
}

/// Names in a folder. Those that are no UTF-8 come with replacement characters, so that they are
/// not left out in silence.
fn file_names(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir).map_err(Error::io("cannot list", dir))?;
    entries
        .map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<_>>()
        .map_err(Error::io("cannot list", dir))
}

/// Image folder of a split: `DIR/SPLIT`, or that of a shorter name (`val2017` for `val2017_crowd`,
/// `test2017` for `test-dev2017`).
///
/// # Errors
/// No such folder.
pub(super) fn image_dir(dir: &Path, split: &str) -> Result<PathBuf> {
    let shorter = split.rmatch_indices('_').map(|(at, _)| split[..at].to_owned());
    let names = [split.to_owned(), split.replace("-dev", "")].into_iter().chain(shorter);
    // A shorter name may be empty or that of another folder, such as `annotations`.
    let folders = names.filter(|name| split_name(name).is_ok()).map(|name| dir.join(name));
    folders.into_iter().find(|folder| folder.is_dir()).ok_or_else(|| {
        let expected = dir.join(split);
        Error::Usage(format!(
            "cannot pack split `{split}`: expected its images in {}, which does not exist",
            shown(expected.display())
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_name_is_no_other_folder() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["annotations", "shards", "val2017", "test2017"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let found = |split| image_dir(dir.path(), split).map(|p| p.file_name().unwrap().to_owned());
        assert_eq!(found("val2017_crowd_x").unwrap(), "val2017");
        assert_eq!(found("test-dev2017").unwrap(), "test2017");
        for split in ["_x", "annotations_x", "shards_2", "-dev", "train"] {
            assert!(found(split).is_err(), "{split}");
        }
    }
}
