//! Recall by size of the ground truth.

use super::scene::Scene;
use crate::coco::config::Area;

/// Ground truth in one range of sizes; the size is the square root of the area.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SizeBin {
    /// Smallest size in pixels, inclusive.
    pub low: f64,
    /// Largest size in pixels, exclusive; infinite in the last bin.
    pub high: f64,
    /// Found by a detection with at least the score threshold.
    pub found: usize,
    /// Found only by a detection below the score threshold.
    pub below: usize,
    /// Not found at all.
    pub missed: usize,
}

impl SizeBin {
    /// Number of boxes.
    pub fn total(&self) -> usize {
        self.found + self.below + self.missed
    }
}

/// Bin edges in pixels. The borders of the area ranges are added to these.
const EDGES: [f64; 12] = [0., 8., 16., 24., 32., 48., 64., 96., 128., 192., 256., 384.];

/// Square roots of the borders between area ranges in pixels, ascending.
pub fn borders(areas: &[Area]) -> Vec<f64> {
    let ends = areas.iter().flat_map(|a| [a.low, a.high]);
    // COCO's upper bound of unlimited ranges is 1e10.
    let mut out: Vec<f64> = ends.filter(|&v| v > 0.0 && v < 1e10).map(f64::sqrt).collect();
    out.sort_by(f64::total_cmp);
    out.dedup();
    out
}

/// Histogram of the ground truth without crowds; `score` is the score threshold.
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
            match t.matched {
                Some(d) if s.found[d].score >= score => bin.found += 1,
                Some(_) => bin.below += 1,
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
    use crate::coco::config::MetricConfig;
    use crate::coco::types::GroundTruth;

    #[test]
    fn edges_include_cocos_borders_and_belong_to_the_upper_bin() {
        let areas = MetricConfig::default().areas;
        assert_eq!(borders(&areas), [32.0, 96.0]);
        let at = |x, area| GroundTruth { area, ..gt(1, x) };
        let s = one(
            &[at(0., 1024.), at(100., 1023.), at(200., f64::NAN), at(300., 1e9)],
            &[dt(1, 0., 0.9), dt(1, 100., 0.1)],
        );
        let bins = sizes(&s, &areas, 0.5);
        let bin = |low| bins.iter().find(|b| b.low == low).unwrap();
        assert_eq!(
            (bin(32.).found, bin(24.).below, bin(0.).missed, bin(384.).missed),
            (1, 1, 1, 1)
        );
        assert_eq!(bins.iter().map(SizeBin::total).sum::<usize>(), 4);
        assert!(bin(384.).high.is_infinite());
    }
}
