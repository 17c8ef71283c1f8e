//! Finds the splits of a COCO folder, their annotation files and image folders.

use std::path::{Path, PathBuf};

use dw_base::text::shown;
use dw_base::{Error, Result};
use fs_err as fs;

use crate::coco;
use crate::validate::split_name;

/// Prefixes of annotation files: with boxes, and image lists without (COCO's test sets), which are
/// packed only if named.
const PREFIXES: [&str; 2] = ["instances_", coco::IMAGES_ONLY_PREFIX];

/// The annotation file of a split.
pub(super) fn annotation_file(dir: &Path, split: &str) -> PathBuf {
    let path = |prefix: &str| dir.join("annotations").join(format!("{prefix}{split}.json"));
    PREFIXES.map(path).into_iter().find(|p| p.exists()).unwrap_or_else(|| path(PREFIXES[0]))
}

/// The splits of a COCO folder: all with `annotations/instances_NAME.json`, or those named in
/// `only` (`image_info_NAME.json` too).
///
/// # Errors
/// No such folder, no annotation file, or a name that has none, is given twice or is not a valid
/// file name.
pub fn find_splits(dir: &Path, only: &[String]) -> Result<Vec<String>> {
    let annotations = dir.join("annotations");
    let at = shown(dir.display());
    if !dir.is_dir() {
        return Err(Error::Usage(format!("cannot pack {at}: the folder does not exist")));
    }
    if !annotations.is_dir() {
        return Err(Error::Usage(format!(
            "cannot pack {at}: it has no folder `annotations`\n\
             hint: a COCO folder has `annotations/instances_SPLIT.json` and a folder `SPLIT` of \
             images"
        )));
    }
    let at = shown(annotations.display());
    check_requested(only)?;
    let files = file_names(&annotations)?;
    let splits = |prefix: &str| {
        let split = |f: &String| Some(f.strip_prefix(prefix)?.strip_suffix(".json")?.to_owned());
        files.iter().filter_map(split).collect::<Vec<_>>()
    };
    let [mut found, images_only] = PREFIXES.map(splits);
    found.sort();
    if found.is_empty() && only.is_empty() {
        return Err(Error::Usage(format!(
            "cannot pack {at}: expected files named `instances_SPLIT.json`, found none"
        )));
    }
    for name in only {
        if !found.contains(name) && !images_only.contains(name) {
            let all = [found, images_only].concat().join(", ");
            return Err(Error::Usage(format!(
                "no split `{name}` in {at}: expected one of {}",
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
                "cannot pack {at}/instances_{name}.json: the split name `{name}` {problem}\n\
                 hint: rename the file, or name the splits to pack with `--split`"
            )));
        }
    }
    Ok(found)
}

/// Checks the names given with `--split`.
fn check_requested(only: &[String]) -> Result<()> {
    for (n, name) in only.iter().enumerate() {
        if let Err(problem) = split_name(name) {
            return Err(Error::Usage(format!("--split: the name `{}` {problem}", shown(name))));
        }
        if only[..n].contains(name) {
            return Err(Error::Usage(format!("--split: `{name}` is given twice")));
        }
    }
    Ok(())
}

/// File names in a folder. Those that are not UTF-8 get replacement characters, so that an invalid
/// split name is reported and not ignored.
fn file_names(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir).map_err(Error::io("cannot list", dir))?;
    entries
        .map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<_>>()
        .map_err(Error::io("cannot list", dir))
}

/// Image folder of a split: `DIR/SPLIT`, or that of a base name (`val2017` for `val2017_crowd`,
/// `test2017` for `test-dev2017`).
///
/// # Errors
/// No such folder.
pub(super) fn image_dir(dir: &Path, split: &str) -> Result<PathBuf> {
    let base_names = split.rmatch_indices('_').map(|(at, _)| split[..at].to_owned());
    let names = [split.to_owned(), split.replace("-dev", "")].into_iter().chain(base_names);
    // A base name can be empty or reserved, such as `annotations`.
    let folders = names.filter(|name| split_name(name).is_ok()).map(|name| dir.join(name));
    folders.into_iter().find(|folder| folder.is_dir()).ok_or_else(|| {
        let expected = dir.join(split);
        Error::Usage(format!(
            "cannot pack split `{split}`: expected its images in {}, found no such folder",
            shown(expected.display())
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_folder_is_never_a_reserved_folder() {
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
