//! AP of a list of detections before and after an oracle corrects errors.

use super::error::{Correction, DetectionError};
use super::scene::best_first;

/// Detections of each class as hits or false positives, and the number of ground-truth boxes.
#[derive(Debug, Clone)]
pub(super) struct Points {
    /// (score, hit) of each class; equal scores keep this order.
    lists: Vec<Vec<(f64, bool)>>,
    /// Number of ground-truth boxes of each class.
    pub positives: Vec<usize>,
}

impl Points {
    pub(super) fn new(num_classes: usize) -> Self {
        Self { lists: vec![vec![]; num_classes], positives: vec![0; num_classes] }
    }

    pub(super) fn push(&mut self, class: usize, score: f64, hit: bool) {
        self.lists[class].push((score, hit));
    }

    /// The points after correcting the errors that `which` selects. Errors come before hits, as in
    /// tidecv, which decides the order of equal scores.
    pub(super) fn corrected(
        &self,
        errors: &[DetectionError],
        which: impl Fn(&DetectionError) -> bool,
    ) -> Points {
        let mut out =
            Points { lists: vec![vec![]; self.lists.len()], positives: self.positives.clone() };
        for e in errors {
            match (which(e), e.correction) {
                (false, _) if e.false_positive => out.push(e.class, e.score, false),
                (true, Correction::Hit(class)) => out.push(class, e.score, true),
                (true, Correction::RemoveTruth) => out.positives[e.class] -= 1,
                (false, _) | (true, Correction::Remove) => {}
            }
        }
        for (to, from) in out.lists.iter_mut().zip(&self.lists) {
            to.extend(from.iter().filter(|p| p.1));
        }
        out
    }

    /// The points with all false positives ranked below all hits.
    pub(super) fn false_positives_last(&self) -> Points {
        let mut out = self.clone();
        for p in out.lists.iter_mut().flatten() {
            p.0 = f64::from(u8::from(p.1));
        }
        out
    }

    /// The points without the unmatched ground truth, whose number per class is `unmatched`.
    pub(super) fn without_unmatched(
        &self,
        errors: &[DetectionError],
        unmatched: &[usize],
    ) -> Points {
        let mut out = self.corrected(errors, |_| false);
        for (n, u) in out.positives.iter_mut().zip(unmatched) {
            *n -= u;
        }
        out
    }
}

/// Mean AP, from 0 to 100, over the classes with ground truth or detections; -1 if there are none.
pub(super) fn mean_ap(points: &Points) -> f64 {
    let (mut sum, mut classes) = (0.0, 0);
    for (list, &positives) in points.lists.iter().zip(&points.positives) {
        if !list.is_empty() || positives > 0 {
            sum += ap(list.clone(), positives);
            classes += 1;
        }
    }
    if classes == 0 { -1.0 } else { sum / f64::from(classes) }
}

/// AP of one class, from 0 to 100: interpolated precision, averaged over 101 recall points.
fn ap(mut list: Vec<(f64, bool)>, positives: usize) -> f64 {
    if positives == 0 {
        return 0.0;
    }
    best_first(&mut list, |p| p.0);
    let (mut recalls, mut precisions) =
        (Vec::with_capacity(list.len()), Vec::with_capacity(list.len()));
    let mut hits = 0;
    for (i, p) in list.iter().enumerate() {
        hits += usize::from(p.1);
        recalls.push(hits as f64 / positives as f64);
        precisions.push(hits as f64 / (i + 1) as f64);
    }
    for i in (1..precisions.len()).rev() {
        precisions[i - 1] = precisions[i - 1].max(precisions[i]);
    }
    let at = |r: f64| precisions.get(recalls.partition_point(|&v| v < r)).copied().unwrap_or(0.0);
    (0..=100).map(|i| at(f64::from(i) / 100.0)).sum::<f64>() / 101.0 * 100.0
}
