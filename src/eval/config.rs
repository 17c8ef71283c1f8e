//! `[eval]`: how raw predictions become detections, and when a run is evaluated.

use serde::{Deserialize, Serialize};

/// `[eval]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// Evaluate after every N epochs, and at the end (0: never).
    pub every_epochs: usize,
    /// An evaluation also summarises the weights that the strategy gives to the objects of this
    /// many images of the split (0: none); for `dw` and `weighting` only.
    pub bag_images: usize,
    /// Score that a detection must exceed.
    pub score_threshold: f64,
    /// Largest number of (point, class) candidates of a level.
    pub per_level: usize,
    /// NMS removes boxes whose IoU with a better one is above this.
    pub nms_iou: f64,
    /// Largest number of detections of an image.
    pub per_image: usize,
    /// Images per forward pass. With more than 1, the padding of an image depends on its
    /// neighbours, and so do its numbers, slightly.
    pub batch: usize,
    /// Detect on the mirrored image as well, and apply NMS to the union.
    pub flip: bool,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            every_epochs: 1,
            bag_images: 0,
            score_threshold: 0.05,
            per_level: 1000,
            nms_iou: 0.6,
            per_image: 100,
            batch: 1,
            flip: false,
        }
    }
}
