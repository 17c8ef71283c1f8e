//! COCO's JSON files, with an error where pycocotools fails or miscounts.

use std::path::Path;

use crate::coco::types::{Detection, GroundTruth};
use crate::error::Result;

/// An image of a ground-truth file.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// Id.
    pub id: i64,
    /// `file_name`, if the file has it.
    pub file_name: Option<String>,
    /// Width in pixels, if the file has it.
    pub width: Option<f64>,
    /// Height in pixels, if the file has it.
    pub height: Option<f64>,
}

/// A ground-truth file.
#[derive(Debug, Clone)]
pub struct Truth {
    /// Image ids, in file order.
    pub images: Vec<i64>,
    /// The same images, with names and sizes.
    pub files: Vec<Image>,
    /// Category ids, ascending, each once.
    pub categories: Vec<i64>,
    /// Their names.
    pub names: Vec<String>,
    /// Boxes in file order.
    pub boxes: Vec<GroundTruth>,
}

/// Reads ground truth; warnings are counted into `warnings`.
///
/// # Errors
/// Cut JSON, missing sections or fields, numbers that are not finite, duplicate annotation ids.
pub fn truth(path: &Path, warnings: &mut Vec<String>) -> Result<Truth> {
    let _ = (path, warnings);
    todo!()
}

/// Reads a results file against its ground truth; warnings are counted into `warnings`.
///
/// # Errors
/// Not a list, an unknown image, a missing or wrongly typed field, a score or box that is not finite.
pub fn results(path: &Path, truth: &Truth, warnings: &mut Vec<String>) -> Result<Vec<Detection>> {
    let _ = (path, truth, warnings);
    todo!()
}
