//! Precision and recall of one category from its matches.
//!
//! Precision and recall rise only at true positives, so each curve is stored only at these. The
//! result is bit-identical to that of a pass over every detection.

use super::config::{Area, RECALLS, recall_point};
use super::matching::Flags;
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
    pub(crate) num_detections: u32,
}

/// Matches of one (category, area range) at a block of IoU thresholds.
pub(crate) struct Block<'a> {
    pub(crate) ranked: &'a Ranked,
    pub(crate) flags: &'a Flags,
    pub(crate) area: &'a Area,
    /// Ground truth that is not ignored.
    pub(crate) positives: usize,
    /// At most 32, because each threshold is one bit of a flag.
    pub(crate) num_thresholds: usize,
}

/// Precision at a true positive, and its score.
type Point = (f64, f64);

/// Counters for one detection limit. `fp_every` and `num_detections` count only the detections
/// beyond the next smaller limit; `fp` and `points` cover all detections within the limit.
struct Tally {
    /// False positives at each threshold, except those counted by `fp_every`; `[T]`.
    fp: Vec<u32>,
    /// Detections that are false positives at every threshold. They are counted once because most
    /// detections are of this kind.
    fp_every: u32,
    /// Number of detections.
    num_detections: u32,
    /// True positives, `[T]`.
    points: Vec<Vec<Point>>,
}

/// Appends the curves of a block of thresholds to `out`, which has one entry per limit.
pub(crate) fn accumulate(block: &Block, out: &mut [Curves]) {
    let first_score = block.ranked.score.first().copied().unwrap_or(0.0);
    let (mut fp_every, mut num_detections) = (0, 0);
    for (tally, out) in tallies(block, out.len()).iter_mut().zip(out) {
        fp_every += tally.fp_every;
        num_detections += tally.num_detections;
        out.num_detections = num_detections;
        for (points, fp) in tally.points.iter_mut().zip(&tally.fp) {
            out.tp.push(points.len() as u32);
            out.fp.push(fp + fp_every);
            append_curve(points, block.positives as f64, first_score, out);
        }
    }
}

/// Counts true and false positives for each of `num_limits` limits.
fn tallies(block: &Block, num_limits: usize) -> Vec<Tally> {
    let Block { ranked, flags, area, num_thresholds, .. } = *block;
    let every = all_bits(num_thresholds);
    let tally = |_| Tally {
        fp: vec![0; num_thresholds],
        fp_every: 0,
        num_detections: 0,
        points: vec![vec![]; num_thresholds],
    };
    let mut tallies: Vec<Tally> = (0..num_limits).map(tally).collect();
    let columns = ranked
        .level
        .iter()
        .zip(&ranked.size)
        .zip(&ranked.score)
        .zip(flags.hit.iter().zip(&flags.ignored));
    for (((&level, &size), &score), (&hit, &ignored)) in columns {
        let level = level as usize;
        let (right, wrong) = outcome(area, size, (hit, ignored), every);
        tallies[level].num_detections += 1;
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
    tallies
}

/// A mask with one bit for each of `num_thresholds` (at least one) thresholds.
pub(crate) fn all_bits(num_thresholds: usize) -> u32 {
    u32::MAX >> (u32::BITS as usize - num_thresholds)
}

/// Thresholds at which a detection of area `size` is a true positive, and those at which it is a
/// false positive, one bit each. `every` has the bits of all thresholds.
pub(crate) fn outcome(
    area: &Area,
    size: f64,
    (hit, ignored): (u32, u32),
    every: u32,
) -> (u32, u32) {
    let ignored = if area.excludes(size) { ignored | !hit } else { ignored };
    (hit & !ignored, !hit & !ignored & every)
}

/// Indices of the set bits.
pub(crate) fn bits(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let t = mask.trailing_zeros() as usize;
        mask = mask.checked_sub(1)? & mask;
        Some(t)
    })
}

/// Appends the curve of one threshold. `first_score` is the highest score of all detections, or 0
/// if there are none.
fn append_curve(points: &mut [Point], positives: f64, first_score: f64, out: &mut Curves) {
    for i in (1..points.len()).rev() {
        if points[i].0 > points[i - 1].0 {
            points[i - 1].0 = points[i].0;
        }
    }
    out.recall.push(points.len() as f64 / positives);
    let mut at = 0;
    for r in 0..RECALLS {
        let recall = recall_point(r);
        while at < points.len() && ((at + 1) as f64) / positives < recall {
            at += 1;
        }
        let (precision, score) = points.get(at).copied().unwrap_or((0.0, 0.0));
        out.precision.push(precision);
        // Recall 0 is reached by the first detection, whether a true or a false positive.
        out.score.push(if r == 0 { first_score } else { score });
    }
}
