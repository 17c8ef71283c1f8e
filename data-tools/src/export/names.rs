//! Names of exported files: inside the folder, and unique.

use std::collections::HashSet;
use std::path::{Component, Path};

use dw_base::Result;
use dw_base::names::relative;
use dw_base::text::shown;
use rayon::prelude::*;

use crate::pixels::{EXTENSIONS, Layout};
use crate::reader::{Record, Split};
use crate::sources::listing::stem;

/// The file name of every image, in the order of the records, and the number of renamed ones.
///
/// Names can collide: `a.jpg` and `a.png` both become `a.png`, and a pack can contain a name twice.
/// Names that differ only in case are the same file on macOS and Windows and collide too.
/// The first image keeps the name; the image id is appended to the names of the others. `key` gives
/// what must be unique of a name, apart from case; `taken` holds the keys already in use.
pub(super) fn file_names(
    split: &Split,
    key: Key,
    taken: &mut HashSet<String>,
) -> Result<(Vec<String>, usize)> {
    let names: Vec<(String, i64)> = (0..split.len())
        .into_par_iter()
        .map(|i| {
            let record = split.record(i)?;
            Ok((file_name(&record)?, record.entry.image_id))
        })
        .collect::<Result<_>>()?;
    Ok(unique(&names, key, taken))
}

/// The normalised name of one image (`./a.jpg` is `a.jpg`) with the extension of the written
/// format.
fn file_name(record: &Record) -> Result<String> {
    let given = &record.annotations.file_name;
    relative(given).map_err(|e| record.error(format!("`file_name` `{}` {e}", shown(given))))?;
    let path: std::path::PathBuf =
        Path::new(given).components().filter(|c| matches!(c, Component::Normal(_))).collect();
    let path = if record.layout == Layout::Jpeg { path } else { path.with_extension("png") };
    Ok(path.to_string_lossy().into_owned())
}

/// What must be unique of a name.
pub(super) type Key = fn(&str) -> String;

/// The whole name.
pub(super) fn whole(name: &str) -> String {
    name.to_lowercase()
}

/// The name without the extension of an image, as VOC's annotation files are named: `a.b` has none.
pub(super) fn voc_stem(name: &str) -> String {
    stem(name, &EXTENSIONS).unwrap_or(name).to_lowercase()
}

/// The name without any extension, as YOLO's label files are named.
pub(super) fn yolo_stem(name: &str) -> String {
    Path::new(name).with_extension("").to_string_lossy().to_lowercase()
}

/// Makes names unique; returns them with the number of changed ones. `names` come with image ids.
fn unique(names: &[(String, i64)], key: Key, taken: &mut HashSet<String>) -> (Vec<String>, usize) {
    // A new name must not be one that a later image has.
    let original: HashSet<String> = names.iter().map(|(name, _)| key(name)).collect();
    let mut renamed = 0;
    let unique = names.iter().map(|(name, id)| {
        if taken.insert(key(name)) {
            return name.clone();
        }
        renamed += 1;
        let mut other = name.clone();
        while original.contains(&key(&other)) || taken.contains(&key(&other)) {
            other = with_suffix(&other, *id);
        }
        taken.insert(key(&other));
        other
    });
    let unique = unique.collect();
    (unique, renamed)
}

/// Appends an image id: `x/a.png` and 7 give `x/a_7.png`.
fn with_suffix(name: &str, id: i64) -> String {
    let path = Path::new(name);
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let file = match path.extension() {
        Some(extension) => format!("{stem}_{id}.{}", extension.to_string_lossy()),
        None => format!("{stem}_{id}"),
    };
    path.with_file_name(file).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_names_is_kept() {
        let names =
            [("a.png", 1), ("a.png", 2), ("a_3.png", 9), ("a.png", 3), ("x/b", 4), ("x/b", 5)];
        let (found, renamed) =
            unique(&names.map(|(n, id)| (n.to_owned(), id)), whole, &mut HashSet::new());
        assert_eq!(found, ["a.png", "a_2.png", "a_3.png", "a_3_3.png", "x/b", "x/b_5"]);
        assert_eq!(renamed, 3);
        // Equal ids still give different names.
        let (found, _) = unique(&vec![("a".into(), 1); 3], whole, &mut HashSet::new());
        assert_eq!(found, ["a", "a_1", "a_1_1"]);
        let stems = [("a.jpg".to_owned(), 1), ("a.png".to_owned(), 2)];
        assert_eq!(unique(&stems, voc_stem, &mut HashSet::new()).0, ["a.jpg", "a_2.png"]);
        assert_eq!(unique(&stems, voc_stem, &mut HashSet::from(["a".to_owned()])).1, 2);
        // As YOLO's readers name the labels, whatever the extension is.
        let odd = [("cat.0".to_owned(), 1), ("cat.jpg".to_owned(), 2)];
        assert_eq!(unique(&odd, yolo_stem, &mut HashSet::new()).0, ["cat.0", "cat_2.jpg"]);
        let odd = [("a.b".to_owned(), 1), ("a.b.jpg".to_owned(), 2)];
        assert_eq!(unique(&odd, voc_stem, &mut HashSet::new()).0, ["a.b", "a.b_2.jpg"]);
        let cases = [("A.png".to_owned(), 1), ("a.PNG".to_owned(), 2), ("a_2.png".to_owned(), 3)];
        assert_eq!(unique(&cases, whole, &mut HashSet::new()).0, ["A.png", "a_2_2.PNG", "a_2.png"]);
    }
}
