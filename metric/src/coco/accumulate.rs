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

/// Counters of one limit.
struct Tally {
    /// False positives at single thresholds.
    fp: Vec<u32>,
    /// False positives at every threshold that this limit is the first to let in; most detections are such.
    fp_every: u32,
    /// Detections that this limit is the first to let in.
    seen: u32,
    /// `[T]`
    points: Vec<Vec<Point>>,
}

/// Adds the curves of a block of `thresholds` thresholds to `out`, which has those of each limit.
pub(crate) fn accumulate(
    ranked: &Ranked,
    flags: &Flags,
    area: &Area,
    positives: usize,
    thresholds: usize,
    out: &mut [Curves],
) {
    let every = u32::MAX >> (u32::BITS as usize - thresholds);
    let tally = |_| Tally {
        fp: vec![0; thresholds],
        fp_every: 0,
        seen: 0,
        points: vec![vec![]; thresholds],
    };
    let mut tallies: Vec<Tally> = (0..out.len()).map(tally).collect();
    let columns = ranked
        .level
        .iter()
        .zip(&ranked.size)
        .zip(&ranked.score)
        .zip(flags.hit.iter().zip(&flags.ignored));
    for (((&level, &size), &score), (&hit, &ignored)) in columns {
        let level = level as usize;
        let ignored = if area.excludes(size) { ignored | !hit } else { ignored };
        let (right, wrong) = (hit & !ignored, !hit & !ignored & every);
        tallies[level].seen += 1;
        if right == 0 && (wrong == every || wrong == 0) {
            tallies[level].fp_every += u32::from(wrong != 0);
            continue;
        }
        let mut fp_every = tallies[..level].iter().map(|l| l.fp_every).sum::<u32>();
        for tally in &mut tallies[level..] {
            fp_every += tally.fp_every;
            for t in bits(wrong) {
                tally.fp[t] += 1;
            }
            for t in bits(right) {
                let tp = f64::from(tally.points[t].len() as u32 + 1);
                let fp = f64::from(tally.fp[t] + fp_every);
                tally.points[t].push((tp / (fp + tp + f64::EPSILON), score));
            }
        }
    }
    let first = ranked.score.first().copied().unwrap_or(0.0);
    let (mut fp_every, mut seen) = (0, 0);
    for (tally, out) in tallies.iter_mut().zip(out) {
        fp_every += tally.fp_every;
        seen += tally.seen;
        out.seen = seen;
        for (points, fp) in tally.points.iter_mut().zip(&tally.fp) {
            out.tp.push(points.len() as u32);
            out.fp.push(fp + fp_every);
            curve(points, positives as f64, first, out);
        }
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
