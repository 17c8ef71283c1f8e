//! Confusion matrix at one score threshold and IoU 0.5.
//!
//! True positives are on the diagonal. Each remaining detection, in order of descending score, is
//! matched with the ground-truth box of highest IoU (at least 0.5) among the unmatched boxes of
//! other classes. Detections without such a box are counted in the background row, unmatched boxes
//! in the background column. Detections on crowds of their class are not counted.

use super::scene::{FOREGROUND, Fate, Scene};

/// Confusion matrix; index `classes` is background.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    /// Number of classes.
    pub classes: usize,
    /// `[true, detected]`, each `classes + 1`.
    counts: Vec<usize>,
}

impl Confusion {
    /// Number of boxes of class `truth` detected as `found`. [`Self::classes`] stands for
    /// background in both arguments.
    pub fn get(&self, truth: usize, found: usize) -> usize {
        self.counts[truth * (self.classes + 1) + found]
    }

    /// Number of ground-truth boxes of a class, or of detections on background.
    pub fn row_sum(&self, truth: usize) -> usize {
        (0..=self.classes).map(|c| self.get(truth, c)).sum()
    }

    /// Pairs (true class, detected class, count) of different classes by descending count, without
    /// background.
    pub fn pairs(&self) -> Vec<(usize, usize, usize)> {
        let places = (0..self.classes)
            .flat_map(|t| (0..self.classes).map(move |f| (t, f)))
            .filter(|(t, f)| t != f);
        let mut out: Vec<_> =
            places.map(|(t, f)| (t, f, self.get(t, f))).filter(|p| p.2 > 0).collect();
        // Equal counts are ordered by their fraction of the true class, the larger first.
        let sums: Vec<usize> = (0..self.classes).map(|t| self.row_sum(t)).collect();
        out.sort_by_key(|p| (std::cmp::Reverse(p.2), sums[p.0]));
        out
    }
}

/// Confusion matrix of the detections with at least `score`.
pub fn confusion(scenes: &[Scene], classes: usize, score: f64) -> Confusion {
    let side = classes + 1;
    let mut out = Confusion { classes, counts: vec![0; side * side] };
    for s in scenes {
        let mut matched = vec![false; s.truth.len()];
        let kept = s.found.partition_point(|f| f.score >= score);
        for f in &s.found[..kept] {
            if let Fate::Hit(g) = f.fate {
                matched[g] = true;
                out.counts[f.class * side + f.class] += 1;
            }
        }
        for f in s.found[..kept].iter().filter(|f| f.fate == Fate::False) {
            let ious = s.overlaps(&f.bbox).enumerate();
            let candidates = ious
                .filter(|&(g, v)| !matched[g] && s.truth[g].class != f.class && v >= FOREGROUND);
            let truth = candidates.reduce(|a, b| if b.1 > a.1 { b } else { a }).map_or(
                classes,
                |(g, _)| {
                    matched[g] = true;
                    s.truth[g].class
                },
            );
            out.counts[truth * side + f.class] += 1;
        }
        for (t, _) in s.truth.iter().zip(&matched).filter(|(_, matched)| !**matched) {
            out.counts[t.class * side + classes] += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::scene::tests::{dt, gt, one};
    use super::*;

    #[test]
    fn counts_of_a_small_scene() {
        let truth = [gt(1, 0.), gt(1, 100.), gt(2, 200.), gt(2, 300.)];
        let found = [
            dt(1, 0., 0.9),   // hit
            dt(2, 1., 0.8),   // its box is matched: class 2 on background
            dt(2, 100., 0.7), // class 1 detected as class 2
            dt(1, 900., 0.6), // class 1 on background
            dt(2, 200., 0.1), // below the threshold
        ];
        let c = confusion(&one(&truth, &found), 2, 0.5);
        assert_eq!([c.get(0, 0), c.get(0, 1), c.get(0, 2)], [1, 1, 0]);
        assert_eq!([c.get(1, 0), c.get(1, 1), c.get(1, 2)], [0, 0, 2]);
        assert_eq!([c.get(2, 0), c.get(2, 1), c.get(2, 2)], [1, 1, 0]);
        assert_eq!(c.pairs(), [(0, 1, 1)]);
        assert_eq!((c.row_sum(0), c.row_sum(1), c.row_sum(2)), (2, 2, 2));
    }

    #[test]
    fn true_positives_are_matched_before_confusions() {
        // The detection of the wrong class has the higher score.
        let c = confusion(&one(&[gt(1, 0.)], &[dt(2, 0., 0.9), dt(1, 0., 0.8)]), 2, 0.5);
        assert_eq!((c.get(0, 0), c.get(0, 1), c.get(2, 1)), (1, 0, 1));
    }
}
