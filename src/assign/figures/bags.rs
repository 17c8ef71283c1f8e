//! Statistics of the weights that a strategy gives to the points of its bags: the number of
//! candidates, and the correlation of positive and negative weights. The DW paper argues that in
//! earlier weighting functions the negative weight follows from the positive one, and that DW
//! decouples them.

use std::collections::BTreeMap;
use std::fmt;

use tch::{Device, Kind, Tensor};

use crate::assign::{ImageBoxes, PairTensors, Progress, Strategy, Targets};
use crate::model::Predictions;
use crate::{Error, Result};

/// A point is a candidate if its share of the positive weight of its bag is above this. It is a
/// share because the weights of a bag add up to 1 in some strategies only.
const CANDIDATE: f64 = 0.01;

/// The weights of the points in the bags of one image's boxes. N: number of (point, box) pairs.
#[derive(Debug)]
pub struct BagWeights {
    /// The pairs.
    pub pairs: PairTensors,
    /// Positive weight of each pair `[N]`.
    pub positive: Tensor,
    /// Negative weight of each pair at the class of its box `[N]`.
    pub negative: Tensor,
}

impl BagWeights {
    /// The weights that a strategy gives to the predictions `p` for one image with the boxes
    /// `truth`.
    ///
    /// # Errors
    /// The strategy has no such weights: its criterion does not record `w_pos` and `w_neg`.
    pub fn new(strategy: &Strategy, p: &Predictions, truth: &ImageBoxes) -> Result<Self> {
        let targets = strategy.matcher.targets(&p.grid, std::slice::from_ref(truth));
        let targets = targets.to(p.cls.kind(), p.cls.device());
        let mut probe: BTreeMap<&'static str, Tensor> = BTreeMap::new();
        tch::no_grad(|| strategy.criterion.terms(p, &targets, &Progress::default(), &mut probe));
        let mut recorded = |name: &str| {
            let value = probe.remove(name);
            value.ok_or_else(|| Error::Bug(format!("the criterion does not record `{name}`")))
        };
        let (positive, negative_u) = (recorded("w_pos")?, recorded("w_neg")?);
        let Targets::Pairs(pairs) = targets else {
            return Err(Error::Bug("weights of bags from a matcher without bags".into()));
        };
        let negative = negative_u.index_select(0, &pairs.logit);
        Ok(Self { pairs, positive, negative })
    }
}

/// The numbers of a tensor, in host memory.
pub(super) fn numbers(t: &Tensor) -> Result<Vec<f64>> {
    let host = t.detach().to_kind(Kind::Double).to_device(Device::Cpu).contiguous();
    Vec::try_from(host).map_err(dw_torch::error)
}

/// Sums over the bags of many boxes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct BagStatistics {
    /// Number of boxes.
    boxes: f64,
    /// Number of candidates.
    candidates: f64,
    /// Sum of the rank correlations of positive and negative weights.
    correlation: f64,
    /// Number of boxes that have such a correlation.
    correlated: f64,
    /// Number of boxes without positive weight.
    unweighted: f64,
}

impl BagStatistics {
    /// Adds the bags of an image.
    ///
    /// # Errors
    /// The device failed.
    pub fn add(&mut self, weights: &BagWeights) -> Result<()> {
        let (positive, negative) = (numbers(&weights.positive)?, numbers(&weights.negative)?);
        // Pairs are in the order of their boxes.
        let mut at = 0;
        let gt = numbers(&weights.pairs.gt)?;
        for index in 0..weights.pairs.labels.numel() {
            let end = at + gt[at..].iter().take_while(|gt| **gt == index as f64).count();
            self.add_bag(&positive[at..end], &negative[at..end]);
            at = end;
        }
        Ok(())
    }

    /// Adds the bag of one box.
    fn add_bag(&mut self, positive: &[f64], negative: &[f64]) {
        self.boxes += 1.0;
        let least = CANDIDATE * positive.iter().sum::<f64>();
        self.candidates += positive.iter().filter(|w| **w > least).count() as f64;
        if positive.iter().all(|w| *w == 0.0) {
            self.unweighted += 1.0;
        }
        if let Some(correlation) = rank_correlation(positive, negative) {
            self.correlation += correlation;
            self.correlated += 1.0;
        }
    }

    /// The sums, which add up over the ranks.
    pub fn sums(&self) -> [f64; 5] {
        [self.boxes, self.candidates, self.correlation, self.correlated, self.unweighted]
    }

    /// Builds statistics from [`BagStatistics::sums`].
    pub fn from_sums(sums: [f64; 5]) -> Self {
        let [boxes, candidates, correlation, correlated, unweighted] = sums;
        Self { boxes, candidates, correlation, correlated, unweighted }
    }

    /// Means by name:
    ///
    /// * `bag_candidates`: points of a box with more than 0.01 of the positive weight of its bag
    /// * `bag_unweighted`: share of the boxes without positive weight, 0 to 1
    /// * `bag_correlation`: Spearman's rank correlation of positive and negative weights over the
    ///   bag of a box, -1 to 1
    ///
    /// Empty without boxes; without the correlation if no box has two points of different weights.
    pub fn means(&self) -> Vec<(&'static str, f64)> {
        let ratio = |name, sum: f64, by: f64| (by > 0.0).then(|| (name, sum / by));
        [
            ratio("bag_candidates", self.candidates, self.boxes),
            ratio("bag_unweighted", self.unweighted, self.boxes),
            ratio("bag_correlation", self.correlation, self.correlated),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

impl fmt::Display for BagStatistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let means = self.means();
        let means: Vec<String> = means.iter().map(|(name, v)| format!("{name} {v:.3}")).collect();
        f.write_str(&means.join(", "))
    }
}

/// Spearman's rank correlation; `None` if one of the two is constant.
fn rank_correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    let mean = (a.len() as f64 - 1.0) / 2.0;
    let centred = |values: &[f64]| ranks(values).into_iter().map(|r| r - mean).collect::<Vec<_>>();
    let (a, b) = (centred(a), centred(b));
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let scale = (dot(&a, &a) * dot(&b, &b)).sqrt();
    (scale > 0.0).then(|| dot(&a, &b) / scale)
}

/// Ranks from 0; equal values have the mean of their ranks.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|i, j| values[*i].total_cmp(&values[*j]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for tied in order.chunk_by(|i, j| values[*i] == values[*j]) {
        let rank = first as f64 + (tied.len() as f64 - 1.0) / 2.0;
        for i in tied {
            ranks[*i] = rank;
        }
        first += tied.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_correlation_is_that_of_spearman() {
        let close = |a: &[f64], b: &[f64], expected: f64| {
            let found = rank_correlation(a, b).unwrap();
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        };
        close(&[1.0, 2.0, 3.0], &[10.0, 1e9, 2e9], 1.0);
        close(&[1.0, 2.0, 3.0], &[0.3, 0.2, 0.1], -1.0);
        // Ranks 0 1 2 3 and 1 0 3 2: 1 - 6 x 4 / (4 x 15).
        close(&[1.0, 2.0, 3.0, 4.0], &[2.0, 1.0, 4.0, 3.0], 0.6);
        // Ranks 0.5 0.5 2 and 0 1 2: 1.5 / sqrt(1.5 x 2).
        close(&[1.0, 1.0, 2.0], &[1.0, 2.0, 3.0], 1.5 / 3f64.sqrt());
        assert_eq!(ranks(&[3.0, 0.0, 3.0, -0.0, 3.0]), [3.0, 0.5, 3.0, 0.5, 3.0]);
        for constant in [&[][..], &[1.0], &[2.0, 2.0]] {
            assert_eq!(rank_correlation(constant, &[1.0, 2.0][..constant.len()]), None);
        }
    }

    #[test]
    fn statistics_are_means_over_boxes() {
        let mut all = BagStatistics::default();
        assert_eq!(all.means(), []);
        all.add_bag(&[5.0, 4.0, 0.05, 0.0], &[0.0, 0.1, 0.2, 0.3]);
        all.add_bag(&[0.0, 0.0], &[0.0, 1.0]);
        all.add_bag(&[], &[]);
        let expected = [
            ("bag_candidates", 2.0 / 3.0),
            ("bag_unweighted", 2.0 / 3.0),
            ("bag_correlation", -1.0),
        ];
        assert_eq!(BagStatistics::from_sums(all.sums()).means(), expected);
    }
}
