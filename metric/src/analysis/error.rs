//! TIDE's kinds of errors, and the classification of the errors of an image.

use super::scene::{FOREGROUND, Fate, Found, Scene};

/// A detection whose IoU with every box is at most this value is on background.
pub const BACKGROUND: f64 = 0.1;

/// Kind of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// IoU of at least [`FOREGROUND`] with a box of another class.
    Classification,
    /// Right class, IoU between [`BACKGROUND`] and [`FOREGROUND`].
    Localisation,
    /// Wrong class, IoU between [`BACKGROUND`] and [`FOREGROUND`].
    Both,
    /// IoU of at least [`FOREGROUND`] with a box that has been matched.
    Duplicate,
    /// IoU of at most [`BACKGROUND`] with every box.
    Background,
    /// A ground-truth box that neither a hit nor a correctable error accounts for.
    Missed,
}

impl Kind {
    /// All kinds, in the paper's order.
    pub const ALL: [Kind; 6] = [
        Kind::Classification,
        Kind::Localisation,
        Kind::Both,
        Kind::Duplicate,
        Kind::Background,
        Kind::Missed,
    ];

    /// Name shown in the report.
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

    /// Definition in one line.
    pub fn meaning(self) -> &'static str {
        match self {
            Kind::Classification => "wrong class, IoU ≥ 0.5",
            Kind::Localisation => "right class, 0.1 ≤ IoU ≤ 0.5",
            Kind::Both => "wrong class, IoU between 0.1 and 0.5",
            Kind::Duplicate => "IoU ≥ 0.5 with a box already matched by a higher score",
            Kind::Background => "IoU ≤ 0.1 with every box",
            Kind::Missed => "ground truth that no hit or error above accounts for",
        }
    }
}

/// What correcting an error does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Correction {
    /// Removes the detection.
    Remove,
    /// Makes the detection a hit of this class.
    Hit(usize),
    /// Removes the ground truth.
    RemoveTruth,
}

/// One error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct DetectionError {
    /// Kind.
    pub kind: Kind,
    /// Class of the detection, or of the missed box.
    pub class: usize,
    /// Score of the detection; 0 for a missed box.
    pub score: f64,
    /// Whether it is a false positive; `false` for missed boxes and detections on crowds.
    pub false_positive: bool,
    /// What correcting it does.
    pub correction: Correction,
}

/// The ground-truth box with the highest IoU (the first of equal ones) among those that `filter`
/// accepts, and its IoU; (0, 0) if none overlaps.
fn best_overlap(ious: &[f64], filter: impl Fn(usize) -> bool) -> (usize, f64) {
    let mut best = (0, 0.0);
    for (g, &v) in ious.iter().enumerate() {
        if filter(g) && v > best.1 {
            best = (g, v);
        }
    }
    best
}

/// Kind and correction of a detection that is not a hit. `corrected` marks the boxes that the
/// correction of an earlier error has already turned into a hit.
fn kind_of(s: &Scene, f: &Found, corrected: &mut [bool]) -> (Kind, Correction) {
    let ious: Vec<f64> = s.overlaps(&f.bbox).collect();
    let same = best_overlap(&ious, |g| s.truth[g].class == f.class);
    let other = best_overlap(&ious, |g| s.truth[g].class != f.class);
    // An unmatched box can be corrected once, by the error with the highest score.
    let mut hit = |g: usize, class: usize| {
        if s.truth[g].matched.is_some() || std::mem::replace(&mut corrected[g], true) {
            Correction::Remove
        } else {
            Correction::Hit(class)
        }
    };
    if (BACKGROUND..=FOREGROUND).contains(&same.1) {
        return (Kind::Localisation, hit(same.0, f.class));
    }
    if other.1 >= FOREGROUND {
        return (Kind::Classification, hit(other.0, s.truth[other.0].class));
    }
    let matched =
        best_overlap(&ious, |g| s.truth[g].class == f.class && s.truth[g].matched.is_some());
    let kind = if matched.1 >= FOREGROUND {
        Kind::Duplicate
    } else if same.1.max(other.1) <= BACKGROUND {
        Kind::Background
    } else {
        Kind::Both
    };
    (kind, Correction::Remove)
}

/// Appends the errors of an image: each detection that is not a hit, then each missed box.
pub(super) fn append_errors(s: &Scene, errors: &mut Vec<DetectionError>) {
    let mut corrected = vec![false; s.truth.len()];
    for f in s.found.iter().filter(|f| !matches!(f.fate, Fate::Hit(_))) {
        let (kind, correction) = kind_of(s, f, &mut corrected);
        errors.push(DetectionError {
            kind,
            class: f.class,
            score: f.score,
            false_positive: f.fate == Fate::False,
            correction,
        });
    }
    let truth = s.truth.iter().zip(&corrected);
    for (t, _) in truth.filter(|(t, corrected)| t.matched.is_none() && !**corrected) {
        errors.push(DetectionError {
            kind: Kind::Missed,
            class: t.class,
            score: 0.0,
            false_positive: false,
            correction: Correction::RemoveTruth,
        });
    }
}
