//! COCO exports of Roboflow: `SPLIT/_annotations.coco.json` next to the images of the split.

use std::path::Path;

use dw_base::text::shown;
use dw_base::{Error, Result};

use super::{Content, Search, Source, listing, refuse_val};
use crate::coco::{self, Coco};

const FILE: &str = "_annotations.coco.json";

/// Names of the folders that have an annotation file.
fn splits(dir: &Path) -> Result<Vec<String>> {
    let mut names = listing::folders(dir)?;
    names.retain(|n| dir.join(n).join(FILE).is_file());
    Ok(names)
}

/// A description of what was found, if the folder has splits of Roboflow.
///
/// # Errors
/// A folder that cannot be listed.
pub fn recognise(dir: &Path) -> Result<Option<String>> {
    Ok(splits(dir)?.first().map(|n| format!("{}/{FILE} (Roboflow)", shown(n))))
}

/// The splits. Category 0 of such exports is the name of the project; it is left out if no split
/// has a box of this category.
///
/// # Errors
/// Splits with different categories, invalid annotations.
pub fn find(dir: &Path, search: &Search) -> Result<Vec<Source>> {
    refuse_val(search, dir)?;
    let names = splits(dir)?;
    let file = |n: &String| dir.join(n).join(FILE);
    let all = names.iter().map(|n| coco::read(&file(n))).collect::<Result<Vec<Coco>>>()?;
    for (name, coco) in names.iter().zip(&all) {
        if coco.categories != all[0].categories {
            let problem = format!("expected those of {}", shown(file(&names[0]).display()));
            return Err(Error::data(&file(name), "categories", problem));
        }
    }
    let unused = |id: i64| all.iter().all(|c| c.annotations.iter().all(|a| a.category_id != id));
    let categories = all.first().map_or(&[][..], |c| &c.categories);
    let without = categories.iter().find(|c| c.id == 0 && categories.len() > 1 && unused(0));
    let notes: Vec<String> = without
        .map(|c| format!("category 0 `{}` has no box in any split: left out", shown(&c.name)))
        .into_iter()
        .collect();
    let without = without.map(|c| c.id);
    let source = |split: String| Source {
        images_dir: dir.join(&split),
        annotations: file(&split),
        split,
        notes: notes.clone(),
        content: Content::File { part: None, without },
    };
    Ok(names.into_iter().map(source).collect())
}
