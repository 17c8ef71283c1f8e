//! IoU thresholds, area ranges and detection limits of an evaluation.

/// A range of ground-truth areas.
#[derive(Debug, Clone, PartialEq)]
pub struct Area {
    /// `all`, `small`, ...
    pub name: String,
    /// Smallest area in square pixels, inclusive.
    pub low: f64,
    /// Largest area in square pixels, inclusive.
    pub high: f64,
}

impl Area {
    /// A range from its name and bounds in square pixels.
    pub fn new(name: &str, low: f64, high: f64) -> Self {
        Self { name: name.into(), low, high }
    }

    /// COCO's range `all`.
    pub fn all() -> Self {
        Self::new("all", 0.0, 1e10)
    }

    /// Whether an area is outside the range.
    pub fn excludes(&self, area: f64) -> bool {
        area < self.low || area > self.high
    }
}

/// What an evaluation computes. The default is COCO's.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricConfig {
    /// IoU thresholds, ascending.
    pub iou: Vec<f64>,
    /// Area ranges; the first is `all`.
    pub areas: Vec<Area>,
    /// Limits on the detections per image and category, ascending; AP uses the last.
    pub max_dets: Vec<usize>,
    /// Count a match with annotation id 0, which pycocotools drops.
    pub count_id_zero: bool,
}

impl Default for MetricConfig {
    fn default() -> Self {
        let areas = vec![
            Area::all(),
            Area::new("small", 0.0, 1024.0),
            Area::new("medium", 1024.0, 9216.0),
            Area::new("large", 9216.0, 1e10),
        ];
        Self {
            iou: linspace(0.5, 0.95, 10),
            areas,
            max_dets: vec![1, 10, 100],
            count_id_zero: false,
        }
    }
}

/// Number of recall points (0, 0.01, ..., 1) of a precision curve.
pub const RECALLS: usize = 101;

/// Recall point `i`, bit-identical to numpy's `linspace(0, 1, 101)`.
pub fn recall_point(i: usize) -> f64 {
    if i == RECALLS - 1 { 1.0 } else { i as f64 * (1.0 / 100.0) }
}

/// numpy's `linspace`, bit-identical: `low + i * step`, the last value replaced by `high`.
pub(crate) fn linspace(low: f64, high: f64, n: usize) -> Vec<f64> {
    let step = (high - low) / (n.max(2) - 1) as f64;
    (0..n).map(|i| if i + 1 == n && n > 1 { high } else { i as f64 * step + low }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ninth_iou_threshold_is_numpys() {
        let ninth = MetricConfig::default().iou[8];
        assert_eq!(ninth.to_bits(), 0.899_999_999_999_999_9_f64.to_bits());
    }
}
