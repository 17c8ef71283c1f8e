//! AP and AR: COCO's 12 numbers, and those of each class.

use super::config::{MetricConfig, RECALLS};
use super::evaluation::Evaluation;

/// COCO's 12 numbers; -1 without ground truth, or where the configuration lacks the IoU threshold,
/// area range or limit.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(missing_docs, reason = "COCO's own names")]
pub struct Summary {
    pub ap: f64,
    pub ap50: f64,
    pub ap75: f64,
    pub ap_small: f64,
    pub ap_medium: f64,
    pub ap_large: f64,
    pub ar1: f64,
    pub ar10: f64,
    pub ar100: f64,
    pub ar_small: f64,
    pub ar_medium: f64,
    pub ar_large: f64,
}

impl Summary {
    /// Pairs of COCO's name and value, in COCO's order.
    pub fn named(&self) -> [(&'static str, f64); 12] {
        [
            ("AP", self.ap),
            ("AP50", self.ap50),
            ("AP75", self.ap75),
            ("APs", self.ap_small),
            ("APm", self.ap_medium),
            ("APl", self.ap_large),
            ("AR1", self.ar1),
            ("AR10", self.ar10),
            ("AR100", self.ar100),
            ("ARs", self.ar_small),
            ("ARm", self.ar_medium),
            ("ARl", self.ar_large),
        ]
    }
}

/// Numbers of one category over all areas, at the largest limit; -1 without ground truth that is
/// not ignored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClassRow {
    /// AP, mean over all IoU thresholds.
    pub ap: f64,
    /// AP at IoU 0.5; -1 if that is not among the thresholds.
    pub ap50: f64,
    /// AP at IoU 0.75; -1 if that is not among the thresholds.
    pub ap75: f64,
    /// AR, mean over all IoU thresholds.
    pub ar: f64,
    /// Ground-truth boxes other than crowd regions.
    pub truth: usize,
    /// Crowd regions.
    pub crowds: usize,
    /// Detections, including those beyond the largest limit.
    pub detections: usize,
}

/// Sum in numpy's order, for bit-identical results: blocks of up to 128 values with eight running
/// sums, longer slices halved.
fn pairwise_sum(v: &[f64]) -> f64 {
    let n = v.len();
    if n < 8 {
        return v.iter().fold(-0.0, |a, b| a + b);
    }
    if n <= 128 {
        let (blocks, rest) = v.as_chunks::<8>();
        let mut r = blocks[0];
        for b in &blocks[1..] {
            for (r, b) in r.iter_mut().zip(b) {
                *r += b;
            }
        }
        let sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
        return rest.iter().fold(sum, |a, b| a + b);
    }
    let half = n / 2 - (n / 2) % 8;
    pairwise_sum(&v[..half]) + pairwise_sum(&v[half..])
}

/// Mean of the values above -1, bit-identical to numpy's; -1 without any.
pub(crate) fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let kept: Vec<f64> = values.filter(|&v| v > -1.0).collect();
    if kept.is_empty() { -1.0 } else { pairwise_sum(&kept) / kept.len() as f64 }
}

/// Indices of all IoU thresholds, or of the one that equals `iou` (within 1e-9).
fn thresholds(config: &MetricConfig, iou: Option<f64>) -> Vec<usize> {
    let all = 0..config.iou.len();
    all.filter(|&t| iou.is_none_or(|v| (config.iou[t] - v).abs() < 1e-9)).collect()
}

/// One of the numbers that are a mean precision over all categories.
#[derive(Debug, Clone)]
pub(crate) struct MeanPrecision {
    /// COCO's name.
    pub(crate) name: String,
    /// Indices of its IoU thresholds.
    pub(crate) thresholds: Vec<usize>,
    /// Index of its area range.
    pub(crate) area: usize,
}

/// `AP`; `AP50` and `AP75` if these are thresholds; `APs`, `APm`, `APl`, `AP_<name>`.
pub(crate) fn mean_precisions(config: &MetricConfig) -> Vec<MeanPrecision> {
    let over_all = [("AP", None), ("AP50", Some(0.5)), ("AP75", Some(0.75))].into_iter();
    let over_all = over_all.map(|(name, iou)| MeanPrecision {
        name: name.into(),
        thresholds: thresholds(config, iou),
        area: 0,
    });
    let ranges = config.areas.iter().enumerate().skip(1).map(|(area, range)| MeanPrecision {
        name: format!("AP{}", suffix(&range.name)),
        thresholds: thresholds(config, None),
        area,
    });
    over_all.filter(|n| n.name == "AP" || !n.thresholds.is_empty()).chain(ranges).collect()
}

/// The suffix that COCO appends to the names of numbers for an area range.
fn suffix(area: &str) -> String {
    match area {
        "small" | "medium" | "large" => area[..1].to_string(),
        _ => format!("_{area}"),
    }
}

impl Evaluation {
    /// AP at the largest limit in area range `area`, at one IoU threshold or averaged over all, for
    /// one category (by index) or averaged over all; -1 if undefined.
    pub fn ap(&self, iou: Option<f64>, area: usize, category: Option<usize>) -> f64 {
        self.mean_precision(&thresholds(&self.config, iou), area, category)
    }

    /// Mean precision at the largest limit over some thresholds, of one category or all.
    fn mean_precision(&self, thresholds: &[usize], area: usize, category: Option<usize>) -> f64 {
        let m = self.config.max_dets.len() - 1;
        let categories = category.map_or(0..self.categories.len(), |k| k..k + 1);
        mean(thresholds.iter().flat_map(|&t| {
            let categories = categories.clone();
            (0..RECALLS).flat_map(move |r| {
                categories.clone().map(move |k| self.precision_at(t, r, k, area, m))
            })
        }))
    }

    /// AP over all areas and categories at one IoU threshold; -1 if that was not evaluated.
    pub fn ap_at(&self, iou: f64) -> f64 {
        self.ap(Some(iou), 0, None)
    }

    /// AR over all IoU thresholds; all arguments are indices.
    pub fn ar(&self, area: usize, limit: usize, category: Option<usize>) -> f64 {
        let categories = category.map_or(0..self.categories.len(), |k| k..k + 1);
        let thresholds = 0..self.config.iou.len();
        mean(
            thresholds
                .flat_map(|t| categories.clone().map(move |k| self.recall_at(t, k, area, limit))),
        )
    }

    /// AP of each category over all thresholds; -1 without ground truth that is not ignored.
    pub fn per_class(&self) -> Vec<f64> {
        (0..self.categories.len()).map(|k| self.ap(None, 0, Some(k))).collect()
    }

    /// Numbers of each category.
    pub fn class_rows(&self) -> Vec<ClassRow> {
        let m = self.config.max_dets.len() - 1;
        let row = |k: usize| ClassRow {
            ap: self.ap(None, 0, Some(k)),
            ap50: self.ap(Some(0.5), 0, Some(k)),
            ap75: self.ap(Some(0.75), 0, Some(k)),
            ar: self.ar(0, m, Some(k)),
            truth: self.classes[k].truth,
            crowds: self.classes[k].crowds,
            detections: self.classes[k].detections,
        };
        (0..self.categories.len()).map(row).collect()
    }

    /// COCO's 12 numbers; AP and the AR of area ranges are at the largest limit.
    pub fn summary(&self) -> Summary {
        let p = &self.config;
        let last = p.max_dets.len() - 1;
        let area = |name: &str| p.areas.iter().position(|a| a.name == name);
        let ap = |name: &str| area(name).map_or(-1.0, |a| self.ap(None, a, None));
        let ar = |name: &str| area(name).map_or(-1.0, |a| self.ar(a, last, None));
        let at = |n: usize| {
            p.max_dets.iter().position(|&m| m == n).map_or(-1.0, |m| self.ar(0, m, None))
        };
        Summary {
            ap: self.ap(None, 0, None),
            ap50: self.ap_at(0.5),
            ap75: self.ap_at(0.75),
            ap_small: ap("small"),
            ap_medium: ap("medium"),
            ap_large: ap("large"),
            ar1: at(1),
            ar10: at(10),
            ar100: at(100),
            ar_small: ar("small"),
            ar_medium: ar("medium"),
            ar_large: ar("large"),
        }
    }

    /// All numbers of the configuration with COCO's names: `AP`; `AP50` and `AP75` if these are
    /// thresholds; `APs` (small), `APm`, `APl`, `AP_<name>` for other areas; `AR<n>` for each
    /// limit; `ARs`, ..., `AR_<name>`. For the default configuration they equal [`Summary::named`].
    pub fn named(&self) -> Vec<(String, f64)> {
        let p = &self.config;
        let last = p.max_dets.len() - 1;
        let precision = |n: MeanPrecision| {
            let value = self.mean_precision(&n.thresholds, n.area, None);
            (n.name, value)
        };
        let mut out: Vec<(String, f64)> = mean_precisions(p).into_iter().map(precision).collect();
        out.extend(
            p.max_dets.iter().enumerate().map(|(m, n)| (format!("AR{n}"), self.ar(0, m, None))),
        );
        let areas = p.areas.iter().enumerate().skip(1);
        out.extend(
            areas.map(|(a, area)| (format!("AR{}", suffix(&area.name)), self.ar(a, last, None))),
        );
        out
    }
}
