//! The metric: order of ties, crowds and ignored areas as in pycocotools, corner by corner.
//!
//! Detections are matched per (category, image), accumulated per category; results do not depend on the threads.
//!
//! * [`types`], [`params`]: what goes in
//! * `groups`: boxes by category; `ranking`: detections in the order in which they count
//! * `matching`: which detection takes which ground truth; `accumulate`: precision and recall
//! * [`summary`]: the numbers; [`matches`]: the fate of each box, for reports

mod accumulate;
mod groups;
pub mod matches;
mod matching;
pub mod params;
mod ranking;
pub mod summary;
pub mod types;

use rayon::prelude::*;

use accumulate::{Curves, accumulate};
use groups::Groups;
pub(crate) use groups::Positions;
use matching::{BLOCK, Scenes};
use params::{Params, RECALLS};
use ranking::Ranked;
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

/// True and false positives over all categories in one area range, at the largest limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AreaCounts {
    /// Ground truth that counts.
    pub positives: usize,
    /// True positives at each IoU threshold.
    pub tp: Vec<u64>,
    /// False positives at each IoU threshold.
    pub fp: Vec<u64>,
    /// Detections that count as nothing, at each IoU threshold.
    pub ignored: Vec<u64>,
}

/// One category's curves in one area range.
#[derive(Debug, Clone)]
struct ClassArea {
    positives: usize,
    /// For each limit; without ground truth that counts, only the counts mean something.
    curves: Vec<Curves>,
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
    /// `[K][A]`
    tables: Vec<Vec<ClassArea>>,
}

impl Evaluation {
    fn curves(&self, k: usize, a: usize, m: usize) -> Option<&Curves> {
        let area = &self.tables[k][a];
        if area.positives == 0 { None } else { Some(&area.curves[m]) }
    }

    /// Precision at IoU threshold `t`, recall point `r`, category `k`, area `a`, limit `m` (all indices); -1 without
    /// ground truth that counts.
    pub fn precision_at(&self, t: usize, r: usize, k: usize, a: usize, m: usize) -> f64 {
        self.curves(k, a, m).map_or(-1.0, |c| c.precision[t * RECALLS + r])
    }

    /// Largest recall at IoU threshold `t`, category `k`, area `a`, limit `m`; -1 without ground truth that counts.
    pub fn recall_at(&self, t: usize, k: usize, a: usize, m: usize) -> f64 {
        self.curves(k, a, m).map_or(-1.0, |c| c.recall[t])
    }

    /// Score at which recall point `r` is reached, 0 where it is not; -1 without ground truth that counts.
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
        let (areas, limits) = (self.params.areas.len(), self.params.max_dets.len());
        let inner = self.categories.len() * areas * limits;
        let at = |n: usize| {
            self.recall_at(
                n / inner,
                n / (areas * limits) % self.categories.len(),
                n / limits % areas,
                n % limits,
            )
        };
        (0..self.params.iou.len() * inner).map(at).collect()
    }

    fn table(&self, at: impl Fn(usize, usize, usize, usize, usize) -> f64) -> Vec<f64> {
        let (areas, limits) = (self.params.areas.len(), self.params.max_dets.len());
        let mut out = Vec::with_capacity(
            self.params.iou.len() * RECALLS * self.categories.len() * areas * limits,
        );
        for t in 0..self.params.iou.len() {
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
        let thresholds = self.params.iou.len();
        let zero = || vec![0; thresholds];
        let mut out = AreaCounts { positives: 0, tp: zero(), fp: zero(), ignored: zero() };
        for class in &self.tables {
            let ClassArea { positives, curves } = &class[a];
            out.positives += positives;
            let Some(c) = curves.last() else { continue };
            for t in 0..thresholds {
                out.tp[t] += u64::from(c.tp[t]);
                out.fp[t] += u64::from(c.fp[t]);
                out.ignored[t] += u64::from(c.seen - c.tp[t] - c.fp[t]);
            }
        }
        out
    }
}

/// Matches and accumulates, on rayon's threads.
pub fn evaluate(problem: &Problem, params: &Params) -> Evaluation {
    let groups = Groups::new(problem);
    // One category a task: the commonest alone can hold a third of all boxes.
    let categories = (0..problem.categories.len()).into_par_iter().with_max_len(1);
    let (classes, tables) = categories
        .map(|k| (count(problem, &groups, k), category(problem, params, &groups, k)))
        .unzip();
    Evaluation { params: params.clone(), categories: problem.categories.to_vec(), classes, tables }
}

fn count(problem: &Problem, groups: &Groups, k: usize) -> ClassCounts {
    let (truth, _) = groups.truth.of(k);
    let crowds = truth.iter().filter(|&&g| problem.truth[g as usize].crowd).count();
    ClassCounts { truth: truth.len() - crowds, crowds, detections: groups.detections.of(k).0.len() }
}

/// Curves of category `k`, for each area range.
fn category(problem: &Problem, params: &Params, groups: &Groups, k: usize) -> Vec<ClassArea> {
    let ranked =
        Ranked::new(problem.detections, groups.detections.of(k), groups.images, &params.max_dets);
    let scenes = Scenes::new(groups.truth.of(k), &ranked, groups.images);
    let counts = |a: &params::Area| {
        let truth = groups.truth.of(k).0.iter().map(|&g| &problem.truth[g as usize]);
        truth.filter(|g| !g.crowd && !a.excludes(g.area)).count()
    };
    let empty = |a| ClassArea {
        positives: counts(a),
        curves: vec![Curves::default(); params.max_dets.len()],
    };
    let mut out: Vec<ClassArea> = params.areas.iter().map(empty).collect();
    for thresholds in params.iou.chunks(BLOCK) {
        let flags = matching::flags(problem, params, thresholds, &ranked, &scenes);
        out.par_iter_mut().enumerate().for_each(|(a, class)| {
            accumulate(
                &ranked,
                &flags[a],
                &params.areas[a],
                class.positives,
                thresholds.len(),
                &mut class.curves,
            );
        });
    }
    out
}
