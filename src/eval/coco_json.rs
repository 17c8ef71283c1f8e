//! Ground truth and results as COCO's JSON files, with an error where pycocotools fails or miscounts.

use std::collections::HashSet;
use std::path::Path;

use serde::Deserialize;

use super::coco::{Detection, GroundTruth};
use crate::error::{Error, Result};

/// A ground-truth file.
#[derive(Debug)]
pub struct Truth {
    /// Image ids.
    pub images: Vec<i64>,
    /// Category ids, ascending.
    pub categories: Vec<i64>,
    /// Their names.
    pub names: Vec<String>,
    /// Boxes in file order.
    pub boxes: Vec<GroundTruth>,
}

#[derive(Deserialize)]
struct TruthFile {
    images: Vec<ImageRow>,
    #[serde(default)]
    annotations: Vec<TruthRow>,
    categories: Vec<CategoryRow>,
}

#[derive(Deserialize)]
struct ImageRow {
    id: Id,
}

#[derive(Deserialize)]
struct CategoryRow {
    id: Id,
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct TruthRow {
    id: Id,
    image_id: Id,
    category_id: Id,
    bbox: [f64; 4],
    area: Option<f64>,
    #[serde(default)]
    iscrowd: u8,
}

#[derive(Deserialize)]
struct ResultRow {
    image_id: Id,
    category_id: Id,
    bbox: [f64; 4],
    score: f64,
}

/// An id, also when written as 1.0.
#[derive(Clone, Copy)]
struct Id(i64);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct Visit;
        impl serde::de::Visitor<'_> for Visit {
            type Value = Id;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a whole number")
            }
            fn visit_i64<E>(self, v: i64) -> std::result::Result<Id, E> {
                Ok(Id(v))
            }
            fn visit_u64<E>(self, v: u64) -> std::result::Result<Id, E> {
                Ok(Id(v as i64))
            }
            fn visit_f64<E: serde::de::Error>(self, v: f64) -> std::result::Result<Id, E> {
                if v.fract() == 0.0 && v.abs() < 9e15 {
                    Ok(Id(v as i64))
                } else {
                    Err(E::custom(format!("expected a whole number, found {v}")))
                }
            }
        }
        d.deserialize_any(Visit)
    }
}

fn read(path: &Path, what: &str) -> Result<Vec<u8>> {
    fs_err::read(path).map_err(|e| Error::Usage(format!("cannot read the {what}: {e}")))
}

fn bad(path: &Path, place: &str, e: impl std::fmt::Display) -> Error {
    Error::Data(format!("{}: {place}: {e}", path.display()))
}

/// Reads ground truth; warnings are counted into `warn`.
///
/// # Errors
/// Cut JSON, missing sections or fields, duplicate annotation ids.
pub fn truth(path: &Path, warn: &mut Vec<String>) -> Result<Truth> {
    let file: TruthFile = serde_json::from_slice(&read(path, "ground truth")?).map_err(|e| bad(path, "ground truth", e))?;
    let mut ids = HashSet::new();
    let (mut no_area, mut id_zero) = (0, 0);
    let mut boxes = Vec::with_capacity(file.annotations.len());
    for (n, a) in file.annotations.iter().enumerate() {
        if !ids.insert(a.id.0) {
            return Err(bad(path, &format!("annotations[{n}]"), format!("`id` {} was used before; ids must be unique", a.id.0)));
        }
        no_area += usize::from(a.area.is_none());
        id_zero += usize::from(a.id.0 == 0);
        boxes.push(GroundTruth {
            id: a.id.0,
            image_id: a.image_id.0,
            category_id: a.category_id.0,
            bbox: a.bbox,
            area: a.area.unwrap_or(a.bbox[2] * a.bbox[3]),
            crowd: a.iscrowd != 0,
        });
    }
    if no_area > 0 {
        warn.push(format!("{no_area} annotations have no `area`: w * h is used"));
    }
    if id_zero > 0 {
        warn.push("an annotation has id 0: pycocotools loses its match, and so do these numbers (--count-id-zero counts it)".into());
    }
    let mut categories: Vec<(i64, String)> = file.categories.into_iter().map(|c| (c.id.0, c.name)).collect();
    categories.sort_by_key(|c| c.0);
    categories.dedup_by_key(|c| c.0);
    let (categories, names) = categories.into_iter().unzip();
    Ok(Truth { images: file.images.iter().map(|i| i.id.0).collect(), categories, names, boxes })
}

/// Reads a results file against its ground truth.
///
/// # Errors
/// Not a list, an unknown image, a missing or wrongly typed field, a score or box that is not finite.
pub fn results(path: &Path, truth: &Truth, warn: &mut Vec<String>) -> Result<Vec<Detection>> {
    let bytes = read(path, "results")?;
    if bytes.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'[') {
        return Err(bad(path, "results", "expected a list of detections"));
    }
    let images: HashSet<i64> = truth.images.iter().copied().collect();
    let raw: Vec<&serde_json::value::RawValue> = serde_json::from_slice(&bytes).map_err(|e| bad(path, "results", e))?;
    let mut unknown = 0;
    let mut out = Vec::with_capacity(raw.len());
    for (n, row) in raw.into_iter().enumerate() {
        let row: ResultRow = serde_json::from_str(row.get()).map_err(|e| bad(path, &format!("results[{n}]"), e))?;
        if !images.contains(&row.image_id.0) {
            return Err(bad(path, &format!("results[{n}]"), format!("`image_id` {} is not in the ground truth", row.image_id.0)));
        }
        if !row.score.is_finite() || row.bbox.iter().any(|v| !v.is_finite()) {
            return Err(bad(path, &format!("results[{n}]"), "`score` and `bbox` must be finite numbers"));
        }
        unknown += usize::from(truth.categories.binary_search(&row.category_id.0).is_err());
        out.push(Detection { image_id: row.image_id.0, category_id: row.category_id.0, bbox: row.bbox, score: row.score });
    }
    if unknown > 0 {
        warn.push(format!("{unknown} detections are of categories that the ground truth does not know: left out"));
    }
    if out.is_empty() {
        warn.push("the results list is empty: AP is 0".into());
    }
    Ok(out)
}
