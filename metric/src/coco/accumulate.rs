//! Precision and recall of one category from its matches.
//!
//! Only true positives raise recall or precision, so each curve is kept at these alone: same numbers as going through
//! every detection, to the bit.

use super::matching::Flags;
use super::params::{Area, RECALLS, recall_point};
use super::ranking::Ranked;

/// Curves of one (category, area range, limit).
#[derive(Debug, Clone, Default)]
pub(crate) struct Curves {
    /// `[T]`
    pub(crate) recall: Vec<f64>,
    /// `[T, R]`
    pub(crate) precision: Vec<f64>,
    /// `[T, R]`
    pub(crate) score: Vec<f64>,
    /// True positives, `[T]`.
    pub(crate) tp: Vec<u32>,
    /// False positives, `[T]`.
    pub(crate) fp: Vec<u32>,
    /// Detections within the limit.
    pub(crate) seen: u32,
}

/// A true positive: precision up to there, and its score.
type Point = (f64, f64);

/// Adds the curves of a block of `thresholds` thresholds to `out`.
pub(crate) fn accumulate(ranked: &Ranked, flags: &Flags, area: &Area, limit: usize, positives: usize, thresholds: usize, out: &mut Curves) {
    let every = u32::MAX >> (u32::BITS as usize - thresholds);
    let mut points: Vec<Vec<Point>> = vec![vec![]; thresholds];
    // Most detections are false at every threshold: one counter for these.
    let (mut fp, mut fp_every, mut seen) = (vec![0u32; thresholds], 0u32, 0u32);
    for p in 0..ranked.len() {
        if ranked.rank[p] as usize >= limit {
            continue;
        }
        seen += 1;
        let (hit, mut ignored) = (flags.hit[p], flags.ignored[p]);
        if area.excludes(ranked.size[p]) {
            ignored |= !hit;
        }
        let (right, wrong) = (hit & !ignored, !hit & !ignored & every);
        if right == 0 && (wrong == every || wrong == 0) {
            fp_every += u32::from(wrong != 0);
            continue;
        }
        for t in bits(wrong) {
            fp[t] += 1;
        }
        for t in bits(right) {
            let tp = f64::from(points[t].len() as u32 + 1);
            let fp = f64::from(fp[t] + fp_every);
            points[t].push((tp / (fp + tp + f64::EPSILON), ranked.score[p]));
        }
    }
    out.seen = seen;
    let first = if seen == 0 { 0.0 } else { ranked.score.first().copied().unwrap_or(0.0) };
    for (t, points) in points.iter_mut().enumerate() {
        out.tp.push(points.len() as u32);
        out.fp.push(fp[t] + fp_every);
        curve(points, positives as f64, first, out);
    }
}

/// Numbers of the set bits.
fn bits(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let t = mask.trailing_zeros() as usize;
        mask = mask.checked_sub(1)? & mask;
        Some(t)
    })
}

/// Adds one threshold's curve; `first` is the best score of all, 0 without detections.
fn curve(points: &mut [Point], positives: f64, first: f64, out: &mut Curves) {
    for i in (1..points.len()).rev() {
        if points[i].0 > points[i - 1].0 {
            points[i - 1].0 = points[i].0;
        }
    }
    out.recall.push(points.len() as f64 / positives);
    let mut at = 0;
    for r in 0..RECALLS {
        let wanted = recall_point(r);
        while at < points.len() && ((at + 1) as f64) / positives < wanted {
            at += 1;
        }
        let (precision, score) = points.get(at).copied().unwrap_or((0.0, 0.0));
        out.precision.push(precision);
        // Recall 0 is reached by the very first detection, right or wrong.
        out.score.push(if r == 0 { first } else { score });
    }
}
