//! Calibration of scores, and the score threshold with the best F1.

use super::scene::{Fate, Scene, best_first};

/// Number of bins of the reliability diagram.
pub const BINS: usize = 10;

/// Detections with scores in one range.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Bin {
    /// Number of detections.
    pub count: usize,
    /// Mean score.
    pub score: f64,
    /// Fraction of true positives.
    pub precision: f64,
}

/// Reliability diagram.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    /// [`BINS`] ranges of equal width over 0..1.
    pub bins: Vec<Bin>,
    /// Expected calibration error: the absolute difference between mean score and precision,
    /// averaged over the bins weighted by count; `None` without detections. Guo, Pleiss, Sun,
    /// Weinberger: "On Calibration of Modern Neural Networks", ICML 2017, here over detections
    /// instead of images.
    pub error: Option<f64>,
    /// Number of detections whose score is NaN or outside 0..1. They are counted in the first or
    /// last bin.
    pub outside: usize,
}

/// Compares scores with the fraction of true positives.
pub fn calibration(scenes: &[Scene]) -> Calibration {
    let mut bins = vec![Bin::default(); BINS];
    let mut outside = 0;
    for f in scenes.iter().flat_map(|s| &s.found).filter(|f| f.fate != Fate::Ignored) {
        outside += usize::from(!(0.0..=1.0).contains(&f.score));
        let score = if f.score.is_nan() { 0.0 } else { f.score.clamp(0.0, 1.0) };
        let bin = &mut bins[((score * BINS as f64) as usize).min(BINS - 1)];
        bin.count += 1;
        bin.score += score;
        bin.precision += f64::from(u8::from(f.fate != Fate::False));
    }
    let total: usize = bins.iter().map(|b| b.count).sum();
    let mut error = 0.0;
    for b in bins.iter_mut().filter(|b| b.count > 0) {
        error += (b.score - b.precision).abs() / total as f64;
        b.score /= b.count as f64;
        b.precision /= b.count as f64;
    }
    Calibration { bins, error: (total > 0).then_some(error), outside }
}

/// Precision, recall and F1 at a score threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cut {
    /// Score threshold, inclusive.
    pub score: f64,
    /// Fraction of the detections that are true positives.
    pub precision: f64,
    /// Fraction of the ground truth that is found.
    pub recall: f64,
    /// Harmonic mean of precision and recall.
    pub f1: f64,
}

/// Score thresholds with the best F1, and the curve over all thresholds.
#[derive(Debug, Clone, PartialEq)]
pub struct Cuts {
    /// Best F1 of all classes together; `None` without a true positive.
    pub all: Option<Cut>,
    /// Best F1 of each class; `None` without a true positive.
    pub classes: Vec<Option<Cut>>,
    /// All classes together at thresholds 0, 0.01, ..., 1; precision is NaN without detections.
    pub curve: Vec<Cut>,
}

/// Finds the score thresholds with the best F1.
pub fn cuts(scenes: &[Scene], classes: usize) -> Cuts {
    let mut lists = vec![vec![]; classes];
    let mut positives = vec![0; classes];
    for s in scenes {
        s.truth.iter().for_each(|t| positives[t.class] += 1);
        for f in s.found.iter().filter(|f| f.fate != Fate::Ignored) {
            lists[f.class].push((f.score, f.fate != Fate::False));
        }
    }
    let mut all: Vec<(f64, bool)> = lists.iter().flatten().copied().collect();
    let total = positives.iter().sum();
    let best = |steps: Vec<Cut>| {
        steps.into_iter().filter(|c| c.f1 > 0.0).reduce(|a, b| if b.f1 > a.f1 { b } else { a })
    };
    let steps_of_all = steps(&mut all, total);
    let curve = (0..=100).map(|i| f64::from(i) / 100.0).map(|score| {
        // The last step whose score is at least this threshold.
        let kept = steps_of_all.partition_point(|c| c.score >= score);
        let nothing = Cut { score, precision: f64::NAN, recall: 0.0, f1: 0.0 };
        kept.checked_sub(1).map_or(nothing, |i| Cut { score, ..steps_of_all[i] })
    });
    let curve = curve.collect();
    let classes = lists.iter_mut().zip(positives).map(|(l, n)| best(steps(l, n))).collect();
    Cuts { all: best(steps_of_all), classes, curve }
}

/// One cut for each distinct score, in descending order.
fn steps(list: &mut [(f64, bool)], positives: usize) -> Vec<Cut> {
    best_first(list, |p| p.0);
    let mut out: Vec<Cut> = vec![];
    let mut hits = 0;
    for (i, &(score, hit)) in list.iter().enumerate() {
        hits += usize::from(hit);
        if list.get(i + 1).is_some_and(|next| next.0 == score) || score.is_nan() {
            continue;
        }
        let fraction = |of: usize| if of == 0 { 0.0 } else { hits as f64 / of as f64 };
        out.push(Cut {
            score,
            precision: fraction(i + 1),
            recall: fraction(positives),
            f1: 2.0 * fraction(i + 1 + positives),
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::scene::tests::{dt, gt, one};
    use super::*;

    #[test]
    fn calibration_of_two_bins() {
        let s = one(
            &[gt(1, 0.), gt(1, 100.)],
            &[dt(1, 0., 0.95), dt(1, 300., 0.91), dt(1, 100., 0.3), dt(1, 500., 1.5)],
        );
        let c = calibration(&s);
        assert_eq!((c.bins[9].count, c.bins[3].count, c.outside), (3, 1, 1));
        assert!((c.bins[9].precision - 1.0 / 3.0).abs() < 1e-12);
        assert!((c.bins[9].score - (0.95 + 0.91 + 1.0) / 3.0).abs() < 1e-12);
        assert!((c.error.unwrap() - ((0.95 + 0.91 + 1.0 - 1.0) / 4.0 + 0.7 / 4.0)).abs() < 1e-12);
        assert_eq!(calibration(&one(&[], &[])).error, None);
    }

    #[test]
    fn best_f1_of_each_class_and_of_all() {
        let s = one(
            &[gt(1, 0.), gt(1, 100.), gt(2, 200.)],
            &[dt(1, 0., 0.9), dt(1, 300., 0.8), dt(1, 100., 0.7), dt(1, 500., 0.2)],
        );
        let c = cuts(&s, 2);
        let best = c.classes[0].unwrap();
        assert_eq!((best.score, best.recall), (0.7, 1.0));
        assert!((best.precision - 2.0 / 3.0).abs() < 1e-12 && (best.f1 - 0.8).abs() < 1e-12);
        assert_eq!(c.classes[1], None);
        assert!((c.all.unwrap().f1 - 4.0 / 6.0).abs() < 1e-12);
        assert_eq!((c.curve.len(), c.curve[0].recall, c.curve[95].recall), (101, 2.0 / 3.0, 0.0));
        assert_eq!(cuts(&one(&[], &[dt(1, 0., 0.9)]), 2).all, None);
        assert_eq!(cuts(&one(&[gt(1, 0.)], &[]), 2).all, None);
    }

    #[test]
    fn equal_scores_are_not_separated() {
        let s = one(&[gt(1, 0.)], &[dt(1, 0., 0.5), dt(1, 300., 0.5)]);
        assert!((cuts(&s, 2).all.unwrap().precision - 0.5).abs() < 1e-12);
    }
}
