//! The result of an evaluation: pycocotools' tables of precision, recall and scores.

use super::accumulate::Curves;
use super::config::{MetricConfig, RECALLS};

/// Number of boxes of one category.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClassCounts {
    /// Ground-truth boxes other than crowd regions.
    pub truth: usize,
    /// Crowd regions.
    pub crowds: usize,
    /// Detections, including those beyond the largest limit.
    pub detections: usize,
}

/// True and false positives over all categories in one area range, at the largest limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AreaCounts {
    /// Ground truth that is not ignored.
    pub positives: usize,
    /// True positives at each IoU threshold.
    pub tp: Vec<u64>,
    /// False positives at each IoU threshold.
    pub fp: Vec<u64>,
    /// Ignored detections at each IoU threshold.
    pub ignored: Vec<u64>,
}

/// Curves of one category in one area range.
#[derive(Debug, Clone)]
pub(crate) struct ClassArea {
    /// Ground truth that is not ignored.
    pub(crate) positives: usize,
    /// One per limit. If there are no positives, only the counts are defined.
    pub(crate) curves: Vec<Curves>,
}

/// Precision, recall and score tables. Index names: `t` IoU threshold, `r` recall point, `k`
/// category, `a` area range, `m` limit; sizes T, R, K, A, M. All values are -1 where there is no
/// ground truth that is not ignored.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// Thresholds, area ranges and limits of the tables.
    pub config: MetricConfig,
    /// Category ids, as in the problem.
    pub categories: Vec<i64>,
    /// Number of boxes of each category.
    pub classes: Vec<ClassCounts>,
    /// `[K][A]`
    pub(crate) tables: Vec<Vec<ClassArea>>,
}

impl Evaluation {
    fn curves(&self, k: usize, a: usize, m: usize) -> Option<&Curves> {
        let area = &self.tables[k][a];
        if area.positives == 0 { None } else { Some(&area.curves[m]) }
    }

    /// Interpolated precision at recall point `r`.
    pub fn precision_at(&self, t: usize, r: usize, k: usize, a: usize, m: usize) -> f64 {
        self.curves(k, a, m).map_or(-1.0, |c| c.precision[t * RECALLS + r])
    }

    /// Recall of all detections within the limit.
    pub fn recall_at(&self, t: usize, k: usize, a: usize, m: usize) -> f64 {
        self.curves(k, a, m).map_or(-1.0, |c| c.recall[t])
    }

    /// Score at which recall point `r` is reached; 0 where it is not reached.
    pub fn score_at(&self, t: usize, r: usize, k: usize, a: usize, m: usize) -> f64 {
        self.curves(k, a, m).map_or(-1.0, |c| c.score[t * RECALLS + r])
    }

    /// pycocotools' `precision`: `[T, R, K, A, M]` in C order.
    pub fn precision(&self) -> Vec<f64> {
        self.table(|t, r, k, a, m| self.precision_at(t, r, k, a, m))
    }

    /// pycocotools' `scores`: `[T, R, K, A, M]` in C order.
    pub fn scores(&self) -> Vec<f64> {
        self.table(|t, r, k, a, m| self.score_at(t, r, k, a, m))
    }

    /// pycocotools' `recall`: `[T, K, A, M]` in C order.
    pub fn recall(&self) -> Vec<f64> {
        let (areas, limits) = (self.config.areas.len(), self.config.max_dets.len());
        let inner = self.categories.len() * areas * limits;
        let at = |n: usize| {
            self.recall_at(
                n / inner,
                n / (areas * limits) % self.categories.len(),
                n / limits % areas,
                n % limits,
            )
        };
        (0..self.config.iou.len() * inner).map(at).collect()
    }

    fn table(&self, at: impl Fn(usize, usize, usize, usize, usize) -> f64) -> Vec<f64> {
        let (areas, limits) = (self.config.areas.len(), self.config.max_dets.len());
        let mut out = Vec::with_capacity(
            self.config.iou.len() * RECALLS * self.categories.len() * areas * limits,
        );
        for t in 0..self.config.iou.len() {
            for r in 0..RECALLS {
                for k in 0..self.categories.len() {
                    for a in 0..areas {
                        out.extend((0..limits).map(|m| at(t, r, k, a, m)));
                    }
                }
            }
        }
        out
    }

    /// Counts over all categories in area range `a`.
    pub fn counts(&self, a: usize) -> AreaCounts {
        let num_thresholds = self.config.iou.len();
        let zero = || vec![0; num_thresholds];
        let mut out = AreaCounts { positives: 0, tp: zero(), fp: zero(), ignored: zero() };
        for class in &self.tables {
            let ClassArea { positives, curves } = &class[a];
            out.positives += positives;
            let Some(c) = curves.last() else { continue };
            for t in 0..num_thresholds {
                out.tp[t] += u64::from(c.tp[t]);
                out.fp[t] += u64::from(c.fp[t]);
                out.ignored[t] += u64::from(c.num_detections - c.tp[t] - c.fp[t]);
            }
        }
        out
    }
}
