//! What goes into the metric.

/// A ground-truth box.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroundTruth {
    /// Annotation id.
    pub id: i64,
    /// Image.
    pub image_id: i64,
    /// Category.
    pub category_id: i64,
    /// `[x, y, w, h]` in pixels.
    pub bbox: [f64; 4],
    /// Area in pixels that decides small, medium, large (COCO: of the mask, not w * h).
    pub area: f64,
    /// May take any number of detections, which then do not count.
    pub crowd: bool,
}

/// A detection.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Detection {
    /// Image.
    pub image_id: i64,
    /// Category.
    pub category_id: i64,
    /// `[x, y, w, h]` in pixels.
    pub bbox: [f64; 4],
    /// Score; any number, NaN ranks last.
    pub score: f64,
}

/// What is to be evaluated. Order of truth and detections decides ties, as in pycocotools.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    /// Image ids; repeated ones count once.
    pub images: &'a [i64],
    /// Category ids, each once; results are in this order (pycocotools': ascending).
    pub categories: &'a [i64],
    /// Ground truth; that of other images or categories is left out.
    pub truth: &'a [GroundTruth],
    /// Detections; those of other images or categories are left out.
    pub detections: &'a [Detection],
}
