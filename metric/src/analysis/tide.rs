//! TIDE: how much AP each kind of error costs.
//!
//! Bolya, Foley, Hays, Hoffman: "TIDE: A General Toolbox for Identifying Object Detection
//! Errors", ECCV 2020. Every false positive has exactly one kind, and every ground-truth box that
//! no error accounts for is missed. The cost of a kind is the AP gained by correcting only the
//! errors of that kind. Results equal those of the authors' `tidecv` 1.0.1, which differs from
//! COCO:
//!
//! * the detection limit (100 by default) applies per image over all classes (COCO: per image and
//!   class);
//! * classes with detections but without ground truth count as AP 0 (COCO: excluded);
//! * a detection on a crowd is not a false positive, but has a kind of error, and correcting it can
//!   make it a hit;
//! * among equal scores, the AP after a correction ranks errors before hits.

use super::error::{DetectionError, Kind, append_errors};
use super::oracle::{Points, mean_ap};
use super::scene::{Fate, Scene};

/// Number and cost of the errors. AP and gains are on a scale of 0 to 100.
#[derive(Debug, Clone, PartialEq)]
pub struct Tide {
    /// AP at IoU 0.5 by TIDE's conventions; -1 if no class has ground truth or detections.
    pub ap: f64,
    /// AP gained by correcting all errors of a kind, in the order of [`Kind::ALL`].
    pub gains: [f64; 6],
    /// Number of errors of each kind.
    pub counts: [usize; 6],
    /// Number of errors by class (of the detection, or of the missed box) and kind.
    pub class_counts: Vec<[usize; 6]>,
    /// Number of false positives. A detection on a crowd region has a kind of error, but is not a
    /// false positive.
    pub num_false_positives: usize,
    /// AP gained if every false positive had the lowest score.
    pub false_positives: f64,
    /// AP gained if unmatched ground truth were removed.
    pub false_negatives: f64,
}

/// Number and cost of the errors of scenes matched at
/// [`FOREGROUND`](super::scene::FOREGROUND).
pub fn tide(scenes: &[Scene], num_classes: usize) -> Tide {
    let mut errors: Vec<DetectionError> = vec![];
    let mut base = Points::new(num_classes);
    let mut unmatched = vec![0; num_classes];
    let mut num_false_positives = 0;
    for s in scenes {
        for t in &s.truth {
            base.positives[t.class] += 1;
            unmatched[t.class] += usize::from(t.matched.is_none());
        }
        for f in s.found.iter().filter(|f| f.fate != Fate::Ignored) {
            base.push(f.class, f.score, f.fate != Fate::False);
            num_false_positives += usize::from(f.fate == Fate::False);
        }
        append_errors(s, &mut errors);
    }
    let mut counts = [0; 6];
    let mut class_counts = vec![[0; 6]; num_classes];
    for e in &errors {
        counts[e.kind as usize] += 1;
        class_counts[e.class][e.kind as usize] += 1;
    }
    let ap = mean_ap(&base);
    let defined = ap >= 0.0;
    let gain = |points: &Points| if defined { mean_ap(points).max(0.0) - ap } else { 0.0 };
    Tide {
        ap,
        // Interpolation at 101 points can make a gain slightly negative; tidecv clips it as well.
        gains: Kind::ALL.map(|k| gain(&base.corrected(&errors, |e| e.kind == k)).max(0.0)),
        counts,
        class_counts,
        num_false_positives,
        false_positives: gain(&base.false_positives_last()),
        false_negatives: gain(&base.without_unmatched(&errors, &unmatched)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::scene::tests::{dt, gt, one};
    use super::*;

    #[test]
    fn one_error_of_each_kind() {
        // Boxes are 10 wide: a shift of s has IoU (10 - s) / (10 + s).
        let truth = [gt(1, 0.), gt(1, 100.), gt(1, 200.), gt(1, 300.), gt(2, 400.)];
        let found = [
            dt(1, 0., 0.9),   // hit
            dt(1, 1., 0.8),   // duplicate: IoU 0.82
            dt(1, 106., 0.7), // localisation: IoU 0.25
            dt(2, 200., 0.6), // classification
            dt(2, 306., 0.5), // both
            dt(1, 900., 0.4), // background
        ];
        let t = tide(&one(&truth, &found), 2);
        assert_eq!(t.counts, [1, 1, 1, 1, 1, 2]); // missed: those at 300 and 400
        assert_eq!(t.class_counts, [[0, 1, 0, 1, 1, 1], [1, 0, 1, 0, 0, 1]]);
        // Class 1: 1 hit of 4, at rank 1: 26 of 101 recall points. Class 2: AP 0.
        assert!((t.ap - 50.0 * 26.0 / 101.0).abs() < 1e-9, "{}", t.ap);
        // The error of class 2 becomes a hit of class 1, ranked below a duplicate and a
        // localisation error: precision 1/1, then 2/4.
        assert!((t.gains[0] - 50.0 * 25.0 * 0.5 / 101.0).abs() < 1e-9, "{:?}", t.gains);
        // The localisation error becomes a hit: 1/1, then 2/3.
        assert!((t.gains[1] - 50.0 * 25.0 * (2.0 / 3.0) / 101.0).abs() < 1e-9, "{:?}", t.gains);
        assert_eq!(t.false_positives, 0.0);
        // Only the matched box is left: class 1 has AP 100, class 2 stays at 0.
        assert!((t.false_negatives - (50.0 - t.ap)).abs() < 1e-9);
    }

    #[test]
    fn empty_perfect_and_missed_detections() {
        let none = tide(&one(&[], &[]), 2);
        assert_eq!((none.ap, none.gains, none.false_negatives), (-1.0, [0.0; 6], 0.0));
        let perfect = tide(&one(&[gt(1, 0.)], &[dt(1, 0., 0.5)]), 2);
        assert_eq!((perfect.ap, perfect.gains), (100.0, [0.0; 6]));
        let missed = tide(&one(&[gt(1, 0.)], &[]), 2);
        // Without the missed box no class is left, so there is no gain (as in tidecv).
        assert_eq!((missed.ap, missed.counts[5]), (0.0, 1));
        let background = tide(&one(&[], &[dt(1, 0., 0.5)]), 2);
        assert_eq!((background.ap, background.counts[4]), (0.0, 1));
    }
}
