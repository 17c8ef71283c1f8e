//! COCO's JSON files, with an error where pycocotools fails or miscounts.

mod cursor;
mod results;
mod source;
mod stream;
mod truth;

pub use results::results;
pub use truth::truth;

use crate::coco::types::GroundTruth;

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
