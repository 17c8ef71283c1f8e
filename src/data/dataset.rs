//! A split as training or evaluation sees it: which records, of which size.

use std::path::Path;

use dw_base::text::shown;
use dw_shards::Split;
use dw_shards::coco::Category;

use crate::{Error, Result};

/// Images with a side under this are not trained on.
const SMALLEST_SIDE: u32 = 32;

/// A split with the records that are used.
pub struct Dataset {
    /// The packed split.
    pub split: Split,
    /// Records that are used, ascending.
    pub records: Vec<usize>,
}

impl Dataset {
    /// Opens a split; `limit` keeps the first N images (0: all), `filter_empty` drops those without boxes or too small.
    ///
    /// # Errors
    /// No such split, damage, or nothing left.
    pub fn open(shards: &Path, split: &str, limit: usize, filter_empty: bool) -> Result<Self> {
        let split = Split::open(shards, split)?;
        let limit = if limit == 0 { split.len() } else { limit.min(split.len()) };
        let smaller = |(width, height): (u32, u32)| width.min(height);
        let records: Vec<usize> = split
            .entries()
            .take(limit)
            .enumerate()
            .filter(|(_, e)| {
                !filter_empty || (e.boxes > 0 && smaller(e.original()) >= SMALLEST_SIDE)
            })
            .map(|(i, _)| i)
            .collect();
        if records.is_empty() {
            let hint = "hint: `data.filter_empty` drops images without boxes, `data.limit` takes the first N only";
            return Err(Error::Usage(format!(
                "split `{}` in {}: no image is left to use\n{hint}",
                split.meta.split,
                shards.display()
            )));
        }
        Ok(Self { split, records })
    }

    /// Number of images used.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Never: opening refuses that.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Label -> category.
    pub fn categories(&self) -> &[Category] {
        self.split.categories()
    }
}

/// The split to use: `asked` where it is named; else `usual`; else the only one whose name begins with
/// `prefix`, which is logged. `key` is the setting that names it.
///
/// # Errors
/// No such split, or several that could be meant.
pub fn choose_split(
    shards: &Path,
    asked: &str,
    usual: &str,
    prefix: &str,
    key: &str,
) -> Result<String> {
    let names = dw_shards::reader::split_names(shards)?;
    let wanted = if asked.is_empty() { usual } else { asked };
    if names.iter().any(|n| n == wanted) {
        return Ok(wanted.to_owned());
    }
    let alike: Vec<&String> = names.iter().filter(|n| n.starts_with(prefix)).collect();
    if let ([only], true) = (&alike[..], asked.is_empty()) {
        tracing::info!(
            "{key}: taking `{}`, the only split of {} that begins with `{prefix}`",
            shown(only),
            shards.display()
        );
        return Ok((*only).clone());
    }
    let held = shown(names.join(", ")).to_string();
    let example = alike.first().or(names.first().as_ref()).map_or(usual, |n| n);
    Err(Error::Usage(format!(
        "no split `{}` in {}: it holds {held}\nhint: name it, as --set {key}={}",
        shown(wanted),
        shards.display(),
        shown(example)
    )))
}

/// Two tables of categories must be equal (else labels would mean other classes, and AP would be near 0 without a reason given).
///
/// # Errors
/// The first category that differs.
pub fn same_categories(a: &[Category], b: &[Category], what_a: &str, what_b: &str) -> Result<()> {
    let text = |c: Option<&Category>| {
        c.map_or_else(|| "nothing".to_owned(), |c| format!("{} `{}`", c.id, shown(&c.name)))
    };
    for i in 0..a.len().max(b.len()) {
        if a.get(i) != b.get(i) {
            let (x, y) = (text(a.get(i)), text(b.get(i)));
            return Err(Error::Data(format!(
                "the categories of {what_a} and {what_b} differ: label {i} is {x} in one and {y} in the other"
            )));
        }
    }
    Ok(())
}
