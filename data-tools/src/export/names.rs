//! Names of exported files: inside the folder, and no two alike.

use std::collections::HashSet;
use std::path::{Component, Path};

use dw_base::names::relative;
use dw_base::text::shown;
use rayon::prelude::*;

use crate::error::Result;
use crate::pixels::Layout;
use crate::reader::{Record, Split};

/// The name of every image, in the order of the records, and how many had to be changed.
///
/// Two images may have one name: `a.jpg` and `a.png` both become `a.png`, and a name may stand
/// twice. The first keeps it, later ones get their image id behind it.
pub(super) fn of(split: &Split) -> Result<(Vec<String>, usize)> {
    let names: Vec<(String, i64)> = (0..split.len())
        .into_par_iter()
        .map(|i| {
            let record = split.record(i)?;
            Ok((name(&record)?, record.entry.image_id))
        })
        .collect::<Result<_>>()?;
    Ok(unique(&names))
}

/// The name of one image in its simplest form (`./a.jpg` is `a.jpg`), with the extension of what is
/// written.
fn name(record: &Record) -> Result<String> {
    let given = &record.annotations.file_name;
    relative(given).map_err(|e| record.bad(format!("`file_name` `{}` {e}", shown(given))))?;
    let path: std::path::PathBuf =
        Path::new(given).components().filter(|c| matches!(c, Component::Normal(_))).collect();
    let path = if record.layout == Layout::Jpeg { path } else { path.with_extension("png") };
    Ok(path.to_string_lossy().into_owned())
}

/// Names that differ, and how many were changed; each comes with its image id.
fn unique(names: &[(String, i64)]) -> (Vec<String>, usize) {
    // A name that stands in the pack is never given to another image.
    let given: HashSet<&str> = names.iter().map(|(name, _)| name.as_str()).collect();
    let mut taken: HashSet<String> = HashSet::with_capacity(names.len());
    let mut renamed = 0;
    let unique = names.iter().map(|(name, id)| {
        if taken.insert(name.clone()) {
            return name.clone();
        }
        renamed += 1;
        let mut other = name.clone();
        while given.contains(other.as_str()) || taken.contains(&other) {
            other = with_suffix(&other, *id);
        }
        taken.insert(other.clone());
        other
    });
    let unique = unique.collect();
    (unique, renamed)
}

/// `x/a.png` and 7: `x/a_7.png`.
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
    fn the_first_keeps_its_name() {
        let names =
            [("a.png", 1), ("a.png", 2), ("a_3.png", 9), ("a.png", 3), ("x/b", 4), ("x/b", 5)];
        let (found, renamed) = unique(&names.map(|(n, id)| (n.to_owned(), id)));
        assert_eq!(found, ["a.png", "a_2.png", "a_3.png", "a_3_3.png", "x/b", "x/b_5"]);
        assert_eq!(renamed, 3);
        // Ids that stand twice still give different names.
        let (found, _) = unique(&vec![("a".into(), 1); 3]);
        assert_eq!(found, ["a", "a_1", "a_1_1"]);
    }
}
