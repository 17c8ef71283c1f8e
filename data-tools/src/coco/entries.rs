//! Entries of an annotation file.

use serde::{Deserialize, Serialize};

use super::numbers;

/// One entry of `images`.
#[derive(Debug, Clone, Deserialize)]
pub struct Image {
    /// COCO image id.
    #[serde(deserialize_with = "numbers::id")]
    pub id: i64,
    /// File name relative to the image folder of the split.
    pub file_name: String,
    /// Width in pixels.
    #[serde(deserialize_with = "numbers::width")]
    pub width: u32,
    /// Height in pixels.
    #[serde(deserialize_with = "numbers::height")]
    pub height: u32,
    /// Whether the size is that of the image file, because the annotations have none.
    #[serde(skip)]
    pub measured: bool,
}

/// One entry of `annotations`, without its segmentation.
#[derive(Debug, Clone, PartialEq)]
pub struct Annotation {
    /// COCO annotation id.
    pub id: i64,
    /// Id of the image.
    pub image_id: i64,
    /// COCO category id; ids need not be consecutive.
    pub category_id: i64,
    /// `[x, y, w, h]` in pixels.
    pub bbox: [f64; 4],
    /// Mask area in square pixels; `w * h` if the file has none.
    pub area: f64,
    /// Whether this is a crowd region.
    pub iscrowd: bool,
    /// Whether it is marked with `ignore`: neither an object nor background. It is packed as a
    /// crowd region.
    pub ignore: bool,
}

/// One entry of `categories`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Category {
    /// COCO category id; ids need not be consecutive.
    #[serde(deserialize_with = "numbers::id")]
    pub id: i64,
    /// Name of the category.
    pub name: String,
}

/// The contents of an annotation file.
#[derive(Debug, Clone, Default)]
pub struct Coco {
    /// Images in file order.
    pub images: Vec<Image>,
    /// Annotations in file order.
    pub annotations: Vec<Annotation>,
    /// Categories, ascending by id; the position is the label.
    pub categories: Vec<Category>,
    /// Whether the file has no section `annotations`.
    pub images_only: bool,
}
