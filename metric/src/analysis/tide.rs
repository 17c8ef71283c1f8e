//! TIDE: which kinds of error cost how much AP.
//!
//! Bolya, Foley, Hays, Hoffman: "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020. Every false
//! positive gets exactly one kind, every ground-truth box that no such error explains is missed; the cost of a kind is
//! the AP that an oracle gains by mending just that kind ([`super::oracle`]). Numbers agree with the authors' `tidecv`
//! 1.0.1, corner by corner:
//!
//! * at most 100 detections an image over all classes (COCO: an image and class);
//! * the mean of AP takes in classes that have detections but no ground truth, as 0 (COCO leaves them out);
//! * a detection on a crowd does not count, yet is still sorted into a kind, and mending may turn it into a hit;
//! * of detections with equal scores, an oracle's AP takes the wrong ones first.

use super::oracle::{Points, mean_ap};
use super::scene::{Fate, Scene};

/// IoU from which a box is found.
pub const FOREGROUND: f64 = 0.5;
/// IoU up to which a detection has nothing to do with a box.
pub const BACKGROUND: f64 = 0.1;

/// Kind of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Right place, wrong class.
    Classification,
    /// Right class, IoU between [`BACKGROUND`] and [`FOREGROUND`].
    Localisation,
    /// Wrong class and wrong place.
    Both,
    /// A second detection of a box that a better score has found.
    Duplicate,
    /// Nothing is there.
    Background,
    /// A box that neither a hit nor a mended error accounts for.
    Missed,
}

impl Kind {
    /// In the paper's order.
    pub const ALL: [Kind; 6] = [
        Kind::Classification,
        Kind::Localisation,
        Kind::Both,
        Kind::Duplicate,
        Kind::Background,
        Kind::Missed,
    ];

    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Classification => "Classification",
            Kind::Localisation => "Localisation",
            Kind::Both => "Both",
            Kind::Duplicate => "Duplicate",
            Kind::Background => "Background",
            Kind::Missed => "Missed",
        }
    }

    /// What it is, in one line.
    pub fn meaning(self) -> &'static str {
        match self {
            Kind::Classification => "IoU ≥ 0.5 with a box of another class",
            Kind::Localisation => "right class, 0.1 ≤ IoU ≤ 0.5",
            Kind::Both => "wrong class, and IoU between 0.1 and 0.5",
            Kind::Duplicate => "IoU ≥ 0.5 with a box that a higher score has already found",
            Kind::Background => "IoU ≤ 0.1 with every box",
            Kind::Missed => "a box that no hit and none of the errors above accounts for",
        }
    }
}

/// What mending an error does to the list of detections.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Mend {
    /// The detection goes away.
    Drop,
    /// The detection becomes a hit of this class.
    Hit(usize),
    /// The ground truth goes away.
    Forget,
}

/// One error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Error {
    pub kind: Kind,
    /// Class of the detection, or of the missed box.
    pub class: usize,
    pub score: f64,
    /// Stands in the list of detections as a false positive: not for missed boxes and detections on crowds.
    pub counts: bool,
    pub mend: Mend,
}

/// The breakdown. AP and its gains are in points of 0 .. 100.
#[derive(Debug, Clone, PartialEq)]
pub struct Tide {
    /// AP at IoU 0.5 under TIDE's conventions; -1 without any class.
    pub ap: f64,
    /// AP gained by mending all errors of a kind, in the order of [`Kind::ALL`].
    pub gains: [f64; 6],
    /// Number of errors of a kind.
    pub counts: [usize; 6],
    /// The same for each class (of the detection, or of the missed box).
    pub class_counts: Vec<[usize; 6]>,
    /// AP gained if every false positive had the lowest score.
    pub false_positives: f64,
    /// AP gained if unfound boxes were no longer asked for.
    pub false_negatives: f64,
}

/// Breaks the errors of scenes matched at [`FOREGROUND`] down.
pub fn tide(scenes: &[Scene], classes: usize) -> Tide {
    let mut errors = vec![];
    let mut base = Points::new(classes);
    let mut unfound = vec![0; classes];
    for s in scenes {
        for t in &s.truth {
            base.positives[t.class] += 1;
            unfound[t.class] += usize::from(t.by.is_none());
        }
        for f in s.found.iter().filter(|f| f.fate != Fate::Ignored) {
            base.push(f.class, f.score, f.fate != Fate::False);
        }
        sort_errors(s, &mut errors);
    }
    let mut counts = [0; 6];
    let mut class_counts = vec![[0; 6]; classes];
    for e in &errors {
        counts[e.kind as usize] += 1;
        class_counts[e.class][e.kind as usize] += 1;
    }
    let ap = mean_ap(&base);
    let known = ap >= 0.0;
    let gain = |points: &Points| if known { mean_ap(points).max(0.0) - ap } else { 0.0 };
    Tide {
        ap,
        // Slightly below zero only by the 101 points of the integral: tidecv clips it too.
        gains: Kind::ALL.map(|k| gain(&base.mended(&errors, |e| e.kind == k)).max(0.0)),
        counts,
        class_counts,
        false_positives: gain(&base.false_last()),
        false_negatives: gain(&base.without_unfound(&errors, &unfound)),
    }
}

/// Gives each false or ignored detection of an image its kind, then adds the boxes that stay missed.
fn sort_errors(s: &Scene, errors: &mut Vec<Error>) {
    // An unfound box can be mended once: by the best detection that errs on it.
    let mut mended = vec![false; s.truth.len()];
    for f in s.found.iter().filter(|f| !matches!(f.fate, Fate::Hit(_))) {
        let ious: Vec<f64> = s.overlaps(&f.bbox).collect();
        let best = |of: &dyn Fn(usize) -> bool| {
            let mut best = (0, 0.0);
            for (g, &v) in ious.iter().enumerate() {
                if of(g) && v > best.1 {
                    best = (g, v);
                }
            }
            best
        };
        let same = best(&|g| s.truth[g].class == f.class);
        let other = best(&|g| s.truth[g].class != f.class);
        let mut claim = |g: usize, class: usize| {
            if s.truth[g].by.is_some() || std::mem::replace(&mut mended[g], true) {
                Mend::Drop
            } else {
                Mend::Hit(class)
            }
        };
        let (kind, mend) = if (BACKGROUND..=FOREGROUND).contains(&same.1) {
            (Kind::Localisation, claim(same.0, f.class))
        } else if other.1 >= FOREGROUND {
            (Kind::Classification, claim(other.0, s.truth[other.0].class))
        } else if best(&|g| s.truth[g].class == f.class && s.truth[g].by.is_some()).1 >= FOREGROUND
        {
            (Kind::Duplicate, Mend::Drop)
        } else if same.1.max(other.1) <= BACKGROUND {
            (Kind::Background, Mend::Drop)
        } else {
            (Kind::Both, Mend::Drop)
        };
        errors.push(Error {
            kind,
            class: f.class,
            score: f.score,
            counts: f.fate == Fate::False,
            mend,
        });
    }
    for (t, _) in s.truth.iter().zip(&mended).filter(|(t, mended)| t.by.is_none() && !**mended) {
        errors.push(Error {
            kind: Kind::Missed,
            class: t.class,
            score: 0.0,
            counts: false,
            mend: Mend::Forget,
        });
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
        // Class 1: 1 hit of 4, first: 26 of 101 recall points. Class 2: nothing.
        assert!((t.ap - 50.0 * 26.0 / 101.0).abs() < 1e-9, "{}", t.ap);
        // Class 2's error becomes a hit of class 1 behind a duplicate and a localisation error: precision 1/1, 2/4.
        assert!((t.gains[0] - 50.0 * 25.0 * 0.5 / 101.0).abs() < 1e-9, "{:?}", t.gains);
        // The localisation error becomes a hit: 1/1, then 2/3.
        assert!((t.gains[1] - 50.0 * 25.0 * (2.0 / 3.0) / 101.0).abs() < 1e-9, "{:?}", t.gains);
        assert_eq!(t.false_positives, 0.0);
        // Only the found box is asked for: class 1 is perfect, class 2 stays at 0.
        assert!((t.false_negatives - (50.0 - t.ap)).abs() < 1e-9);
    }

    #[test]
    fn nothing_and_perfection() {
        let none = tide(&one(&[], &[]), 2);
        assert_eq!((none.ap, none.gains, none.false_negatives), (-1.0, [0.0; 6], 0.0));
        let perfect = tide(&one(&[gt(1, 0.)], &[dt(1, 0., 0.5)]), 2);
        assert_eq!((perfect.ap, perfect.gains), (100.0, [0.0; 6]));
        let blind = tide(&one(&[gt(1, 0.)], &[]), 2);
        // Nothing is left to find once the missed box is forgotten: no class, no gain (as tidecv).
        assert_eq!((blind.ap, blind.counts[5]), (0.0, 1));
        let unasked = tide(&one(&[], &[dt(1, 0., 0.5)]), 2);
        assert_eq!((unasked.ap, unasked.counts[4]), (0.0, 1));
    }
}
