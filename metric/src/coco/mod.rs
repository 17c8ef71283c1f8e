//! The metric: order of ties, crowds and ignored areas as in pycocotools, corner by corner.
//!
//! Detections are matched per (category, image), accumulated per category; results do not depend on the threads.

pub mod matches;
pub mod params;
pub mod summary;
pub mod types;

use params::Params;
use types::Problem;

/// Numbers of boxes of one category.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClassCounts {
    /// Ground truth that is no crowd.
    pub truth: usize,
    /// Crowd regions.
    pub crowds: usize,
    /// Detections, also those beyond the largest limit.
    pub detections: usize,
}

/// Precision, recall and score tables, category by category.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// What was asked.
    pub params: Params,
    /// Category ids, as in the problem.
    pub categories: Vec<i64>,
    /// Boxes of each category.
    pub classes: Vec<ClassCounts>,
}

impl Evaluation {
    /// Precision at IoU threshold `t`, recall point `r`, category `k`, area `a`, limit `m`; -1 without ground truth that counts.
    pub fn precision_at(&self, t: usize, r: usize, k: usize, a: usize, m: usize) -> f64 {
        let _ = (t, r, k, a, m);
        todo!()
    }

    /// Largest recall at IoU threshold `t`, category `k`, area `a`, limit `m`; -1 without ground truth that counts.
    pub fn recall_at(&self, t: usize, k: usize, a: usize, m: usize) -> f64 {
        let _ = (t, k, a, m);
        todo!()
    }

    /// Score at which recall point `r` is reached, 0 where it is not; as [`Self::precision_at`].
    pub fn score_at(&self, t: usize, r: usize, k: usize, a: usize, m: usize) -> f64 {
        let _ = (t, r, k, a, m);
        todo!()
    }
}

/// Matches and accumulates.
pub fn evaluate(problem: &Problem, params: &Params) -> Evaluation {
    let _ = (problem, params);
    todo!()
}
