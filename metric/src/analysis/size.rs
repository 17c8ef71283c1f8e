//! How much is found, by size of the ground truth.

use super::scene::Scene;
use crate::Area;

/// Boxes of one range of sizes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SizeBin {
    /// Smallest square root of the area, pixels, inclusive.
    pub low: f64,
    /// Largest, exclusive; infinite in the last bin.
    pub high: f64,
    /// Found by a detection above the score threshold.
    pub found: usize,
    /// Found only by one below it.
    pub faint: usize,
    /// Not found at all.
    pub missed: usize,
}

impl SizeBin {
    /// All boxes of the bin.
    pub fn total(&self) -> usize {
        self.found + self.faint + self.missed
    }
}

/// Edges in pixels, before the borders of the area ranges come in.
const EDGES: [f64; 12] = [0., 8., 16., 24., 32., 48., 64., 96., 128., 192., 256., 384.];

/// Square roots of the borders between area ranges, ascending.
pub fn borders(areas: &[Area]) -> Vec<f64> {
    let ends = areas.iter().flat_map(|a| [a.low, a.high]);
    // COCO writes "no limit" as 1e10.
    let mut out: Vec<f64> = ends.filter(|&v| v > 0.0 && v < 1e10).map(f64::sqrt).collect();
    out.sort_by(f64::total_cmp);
    out.dedup();
    out
}

/// Counts ground truth that is no crowd; `score` is the threshold.
pub fn sizes(scenes: &[Scene], areas: &[Area], score: f64) -> Vec<SizeBin> {
    let mut edges: Vec<f64> = EDGES.into_iter().chain(borders(areas)).collect();
    edges.sort_by(f64::total_cmp);
    edges.dedup();
    let high = |i: usize| edges.get(i + 1).copied().unwrap_or(f64::INFINITY);
    let mut bins: Vec<SizeBin> = edges
        .iter()
        .enumerate()
        .map(|(i, &low)| SizeBin { low, high: high(i), ..SizeBin::default() })
        .collect();
    for s in scenes {
        for t in &s.truth {
            let side = t.area.max(0.0).sqrt();
            let bin = &mut bins[edges.partition_point(|&e| e <= side).saturating_sub(1)];
            match t.by {
                Some(d) if s.found[d].score >= score => bin.found += 1,
                Some(_) => bin.faint += 1,
                None => bin.missed += 1,
            }
        }
    }
    bins
}

#[cfg(test)]
mod tests {
    use super::super::scene::tests::{dt, gt, one};
    use super::*;
    use crate::{GroundTruth, Params};

    #[test]
    fn borders_are_coco_s_and_edges_belong_above() {
        let areas = Params::default().areas;
        assert_eq!(borders(&areas), [32.0, 96.0]);
        let at = |x, area| GroundTruth { area, ..gt(1, x) };
        let s = one(
            &[at(0., 1024.), at(100., 1023.), at(200., f64::NAN), at(300., 1e9)],
            &[dt(1, 0., 0.9), dt(1, 100., 0.1)],
        );
        let bins = sizes(&s, &areas, 0.5);
        let bin = |low| bins.iter().find(|b| b.low == low).unwrap();
        assert_eq!(
            (bin(32.).found, bin(24.).faint, bin(0.).missed, bin(384.).missed),
            (1, 1, 1, 1)
        );
        assert_eq!(bins.iter().map(SizeBin::total).sum::<usize>(), 4);
        assert!(bin(384.).high.is_infinite());
    }
}
