//! COCO: the splits of a folder with their annotation files and image folders, or one file
//! anywhere.

use std::io::Read;
use std::path::{Path, PathBuf};

use dw_base::file::no_folder;
use dw_base::text::shown;
use dw_base::{Error, Result};

use super::listing::{self, Part};
use super::{Content, Search, Source};
use crate::coco;
use crate::validate::split_name;

/// Prefixes of annotation files: those with boxes, and lists of images without boxes (COCO's test
/// sets), which are packed only if selected with `--split`.
const PREFIXES: [&str; 2] = ["instances_", coco::IMAGES_ONLY_PREFIX];

/// The annotation file of a split.
fn annotation_file(dir: &Path, split: &str) -> PathBuf {
    let path = |prefix: &str| dir.join("annotations").join(format!("{prefix}{split}.json"));
    PREFIXES.map(path).into_iter().find(|p| p.exists()).unwrap_or_else(|| path(PREFIXES[0]))
}

/// A description of what was found, if the folder has COCO annotation files.
///
/// # Errors
/// A folder that cannot be listed.
pub fn recognise(dir: &Path) -> Result<Option<String>> {
    let annotations = dir.join("annotations");
    if !annotations.is_dir() {
        return Ok(None);
    }
    let files = listing::entries(&annotations)?;
    let is_json = |f: &String| listing::stem(f, &["json"]).is_some();
    Ok(files.into_iter().find(is_json).map(|f| format!("annotations/{} (COCO)", shown(f))))
}

/// The splits of a COCO folder: all that have `annotations/instances_NAME.json`, or those in
/// `search.only`, for which `image_info_NAME.json` counts too.
///
/// # Errors
/// No annotation file, a split that has none, no image folder.
pub fn find(dir: &Path, search: &Search) -> Result<Vec<Source>> {
    super::refuse_val(search, dir)?;
    let names = find_splits(dir, &search.only)?;
    let source = |split: String| {
        let images_dir = image_dir(dir, &split)?;
        let annotations = annotation_file(dir, &split);
        let mut notes = vec![];
        if images_dir.file_name().is_none_or(|n| n != split.as_str()) {
            notes.push(format!("images are read from {}", shown(images_dir.display())));
        }
        let content = Content::File { part: None, without: None };
        Ok(Source { split, images_dir, annotations, notes, content })
    };
    names.into_iter().map(source).collect()
}

/// An annotation file outside the usual layout, with its image folder: one split, named by
/// `--split` or after the file, or the splits `train` and `val` with `--val`.
///
/// # Errors
/// No such folder, a name that cannot be that of a split.
pub fn from_file(file: &Path, images: &Path, search: &Search) -> Result<Vec<Source>> {
    if !images.is_dir() {
        let at = shown(images.display());
        return Err(Error::Usage(format!("--images {at}: {}", no_folder(images))));
    }
    let source = |split: String, part, notes| Source {
        split,
        images_dir: images.to_owned(),
        annotations: file.to_owned(),
        notes,
        content: Content::File { part, without: None },
    };
    if let Some(val) = search.val {
        let part = |p: Part| source(p.name().to_owned(), Some((p, val)), vec![listing::note(val)]);
        return super::select(Part::ALL.map(part).into(), search, file);
    }
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let stem = PREFIXES.iter().find_map(|p| stem.strip_prefix(p)).unwrap_or(&stem);
    let split = match &search.only[..] {
        [] => match split_name(stem) {
            Ok(()) => stem.to_owned(),
            Err(problem) => {
                return Err(Error::Usage(format!(
                    "cannot name the split after {}: `{}` {problem}\nhint: use --split NAME",
                    shown(file.display()),
                    shown(stem)
                )));
            }
        },
        [one] => one.clone(),
        _ => return Err(Error::Usage("--split: an annotation file is one split".into())),
    };
    let from = format!("images are read from {}", shown(images.display()));
    let whole = vec![source(split, None, vec![from])];
    super::select(whole, &Search { only: vec![], ..search.clone() }, file)
}

/// Names of the splits.
fn find_splits(dir: &Path, only: &[String]) -> Result<Vec<String>> {
    let annotations = dir.join("annotations");
    let at = shown(dir.display());
    if !annotations.is_dir() {
        return Err(Error::Usage(format!(
            "cannot pack {at}: it has no folder `annotations`\n\
             hint: a COCO folder has `annotations/instances_SPLIT.json` and a folder `SPLIT` of \
             images"
        )));
    }
    let at = shown(annotations.display());
    let files = listing::entries(&annotations)?;
    let splits = |prefix: &str| {
        let split = |f: &String| Some(f.strip_prefix(prefix)?.strip_suffix(".json")?.to_owned());
        files.iter().filter_map(split).collect::<Vec<_>>()
    };
    let [found, images_only] = PREFIXES.map(splits);
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

/// CRC-32C and length in bytes of a file.
pub(super) fn checksum(path: &Path) -> Result<(u32, u64)> {
    let mut file = coco::open(path)?;
    let (mut crc, mut length, mut buffer) = (0, 0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(Error::io("cannot read", path))? {
            0 => return Ok((crc, length)),
            n => {
                crc = crc32c::crc32c_append(crc, &buffer[..n]);
                length += n as u64;
            }
        }
    }
}

/// Image folder of a split: `DIR/SPLIT`, or the folder of a base name (`val2017` for
/// `val2017_crowd`, `test2017` for `test-dev2017`).
///
/// # Errors
/// No such folder.
fn image_dir(dir: &Path, split: &str) -> Result<PathBuf> {
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
    use std::fs;

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
