//! A packed split with the records that training or evaluation uses.

use std::path::Path;

use dw_base::text::shown;
use dw_shards::Split;
use dw_shards::coco::Category;

use crate::{Error, Result};

/// With `data.filter_empty`, images with a side shorter than this (pixels) are dropped.
const SMALLEST_SIDE: u32 = 32;

/// A packed split and a selection of its records.
pub struct Dataset {
    /// The packed split.
    pub split: Split,
    /// Indices of the selected records, ascending.
    pub records: Vec<usize>,
}

impl Dataset {
    /// Opens a split. `limit` selects the first N images (0: all); `filter_empty` drops images
    /// without boxes and images with a side under 32 pixels.
    ///
    /// # Errors
    /// A split that does not exist or is damaged, or a selection without any image.
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
            let hint = "hint: `data.filter_empty` drops images without boxes, `data.limit` \
                        selects the first N images";
            return Err(Error::Usage(format!(
                "split `{}` in {}: no images are selected\n{hint}",
                split.meta.split,
                shards.display()
            )));
        }
        Ok(Self { split, records })
    }

    /// Number of selected images.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether any selected image has a box, or a crowd region.
    pub fn has_boxes(&self) -> bool {
        self.records.iter().any(|i| self.split.entry(*i).boxes + self.split.entry(*i).crowd > 0)
    }

    /// Always false: [`Dataset::open`] fails for an empty selection.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Name, fingerprint and number of selected images, to compare the data of two ranks.
    pub fn identity(&self) -> String {
        let (name, fingerprint) = (&self.split.meta.split, self.split.fingerprint());
        format!("{} {fingerprint:08x} ({} images)", shown(name), self.len())
    }

    /// Categories, indexed by label.
    pub fn categories(&self) -> &[Category] {
        self.split.categories()
    }
}

/// The name of the split to use: `configured`, the value of the setting `key`. Where that is empty,
/// `default` if there is such a split, else the only split whose name begins with `prefix`
/// (logged).
///
/// # Errors
/// No such split, or several splits that begin with `prefix`.
pub fn choose_split(
    shards: &Path,
    configured: &str,
    default: &str,
    prefix: &str,
    key: &str,
) -> Result<String> {
    let names = dw_shards::reader::split_names(shards)?;
    let name = if configured.is_empty() { default } else { configured };
    if names.iter().any(|n| n == name) {
        return Ok(name.to_owned());
    }
    let candidates: Vec<&String> = names.iter().filter(|n| n.starts_with(prefix)).collect();
    if let ([only], true) = (&candidates[..], configured.is_empty()) {
        tracing::info!(
            "{key}: using `{}`, the only split in {} whose name begins with `{prefix}`",
            shown(only),
            shards.display()
        );
        return Ok((*only).clone());
    }
    let found = shown(names.join(", ")).to_string();
    let example = candidates.first().or(names.first().as_ref()).map_or(default, |n| n);
    Err(Error::Usage(format!(
        "no split `{}` in {}: found {found}\nhint: select one, for example --set {key}={}",
        shown(name),
        shards.display(),
        shown(example)
    )))
}

/// Checks that two category tables are equal. If they differed, labels would stand for other
/// classes and AP would be close to 0 without any error.
///
/// # Errors
/// The categories differ; the error names the first label for which they do.
pub fn same_categories(a: &[Category], b: &[Category], what_a: &str, what_b: &str) -> Result<()> {
    let text = |c: Option<&Category>| {
        c.map_or_else(|| "nothing".to_owned(), |c| format!("{} `{}`", c.id, shown(&c.name)))
    };
    for i in 0..a.len().max(b.len()) {
        if a.get(i) != b.get(i) {
            let (x, y) = (text(a.get(i)), text(b.get(i)));
            return Err(Error::Inconsistent(format!(
                "the categories of {what_a} and {what_b} differ: label {i} is {x} in the former \
                 and {y} in the latter"
            )));
        }
    }
    Ok(())
}
