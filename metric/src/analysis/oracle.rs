//! AP of a list of hits and false alarms, and of that list after an oracle's mending ([`super::tide`]).

use super::scene::best_first;
use super::tide::{Error, Mend};

/// Detections of each class with what they turned out to be, and the number of boxes to find.
#[derive(Debug, Clone)]
pub(super) struct Points {
    /// Per class: (score, hit), in the order in which ties are kept.
    lists: Vec<Vec<(f64, bool)>>,
    /// Per class.
    pub positives: Vec<usize>,
}

impl Points {
    pub(super) fn new(classes: usize) -> Self {
        Self { lists: vec![vec![]; classes], positives: vec![0; classes] }
    }

    pub(super) fn push(&mut self, class: usize, score: f64, hit: bool) {
        self.lists[class].push((score, hit));
    }

    /// The errors, mended where `which` says so, then the hits: the order in which tidecv keeps ties.
    pub(super) fn mended(&self, errors: &[Error], which: impl Fn(&Error) -> bool) -> Points {
        let mut out =
            Points { lists: vec![vec![]; self.lists.len()], positives: self.positives.clone() };
        for e in errors {
            match (which(e), e.mend) {
                (false, _) if e.counts => out.push(e.class, e.score, false),
                (true, Mend::Hit(class)) => out.push(class, e.score, true),
                (true, Mend::Forget) => out.positives[e.class] -= 1,
                (false, _) | (true, Mend::Drop) => {}
            }
        }
        for (to, from) in out.lists.iter_mut().zip(&self.lists) {
            to.extend(from.iter().filter(|p| p.1));
        }
        out
    }

    /// False alarms ranked below all hits.
    pub(super) fn false_last(&self) -> Points {
        let mut out = self.clone();
        for p in out.lists.iter_mut().flatten() {
            p.0 = f64::from(u8::from(p.1));
        }
        out
    }

    /// Boxes that were not found are not asked for.
    pub(super) fn without_unfound(&self, errors: &[Error], unfound: &[usize]) -> Points {
        let mut out = self.mended(errors, |_| false);
        for (n, u) in out.positives.iter_mut().zip(unfound) {
            *n -= u;
        }
        out
    }
}

/// Mean of the classes' AP over those with boxes or detections, in points of 0 .. 100; -1 if there are none.
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

/// Precision at 101 points of recall, averaged.
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
