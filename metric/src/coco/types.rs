//! Input of the metric.

/// A ground-truth box.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroundTruth {
    /// Annotation id.
    pub id: i64,
    /// Id of the image.
    pub image_id: i64,
    /// Id of the category.
    pub category_id: i64,
    /// `[x, y, w, h]` in pixels.
    pub bbox: [f64; 4],
    /// Area in square pixels, which determines the area ranges (in COCO files that of the mask, not
    /// w * h).
    pub area: f64,
    /// Whether this is a crowd region, which matches any number of detections, all of which are
    /// ignored.
    pub crowd: bool,
}

/// A detection.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Detection {
    /// Id of the image.
    pub image_id: i64,
    /// Id of the category.
    pub category_id: i64,
    /// `[x, y, w, h]` in pixels.
    pub bbox: [f64; 4],
    /// Confidence; any number, NaN ranks last.
    pub score: f64,
}

/// Ground truth and detections to evaluate. Their order breaks ties, as in pycocotools.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    /// Image ids; duplicates count once.
    pub images: &'a [i64],
    /// Unique category ids; results are in this order (pycocotools': ascending).
    pub categories: &'a [i64],
    /// Ground truth; boxes of other images or categories are skipped.
    pub truth: &'a [GroundTruth],
    /// Detections; those of other images or categories are skipped.
    pub detections: &'a [Detection],
}
