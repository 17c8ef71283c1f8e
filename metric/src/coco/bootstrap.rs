//! Bootstrap over images: AP of random samples of the images, and confidence intervals from them.
//!
//! B. Efron, R. Tibshirani: "An Introduction to the Bootstrap", 1993; intervals are computed by the
//! percentile method. Objects in one image are not independent of each other, so whole images are
//! drawn.

use rand_xoshiro::rand_core::{Rng, SeedableRng};
use rand_xoshiro::{SplitMix64, Xoshiro256PlusPlus};
use rayon::prelude::*;

use super::config::{MetricConfig, RECALLS};
use super::groups::Groups;
use super::summary::{MeanPrecision, mean, mean_precisions};
use super::types::Problem;
use super::weighted::{self, Weighted};

/// Fraction of the samples within an interval.
pub const LEVEL: f64 = 0.95;

/// How samples are drawn. Equal settings draw the same images for every problem with the same
/// number of images, so that samples of two sets of detections are paired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bootstrap {
    /// Number of samples.
    pub replicates: usize,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl Bootstrap {
    /// Draws `num_images` images with replacement; returns how often each was drawn. The result
    /// depends only on the arguments and the seed.
    pub fn draw(&self, num_images: usize, replicate: usize) -> Vec<u32> {
        let seed = SplitMix64::seed_from_u64(self.seed).next_u64() ^ replicate as u64;
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut counts = vec![0; num_images];
        for _ in 0..num_images {
            // The high half of the product is uniform over the images, up to a bias of 2^-64.
            let product = u128::from(random.next_u64()) * num_images as u128;
            counts[(product >> u64::BITS) as usize] += 1;
        }
        counts
    }
}

/// AP of each sample of the images; -1 in samples without ground truth that is not ignored.
#[derive(Debug, Clone, PartialEq)]
pub struct Samples {
    /// How the samples were drawn.
    pub settings: Bootstrap,
    /// Name as in COCO, such as `AP50`, and the value in each sample: the mean over the categories
    /// that have ground truth in that sample.
    pub numbers: Vec<(String, Vec<f64>)>,
    /// AP of each category over all thresholds and areas, in each sample.
    pub categories: Vec<Vec<f64>>,
}

impl Samples {
    /// Values of the number with this name.
    pub fn number(&self, name: &str) -> Option<&[f64]> {
        self.numbers.iter().find(|n| n.0 == name).map(|n| &n.1[..])
    }
}

/// Evaluates samples of the images, on rayon's threads. Each value is bit-identical to that of
/// [`evaluate`](super::evaluate) on the drawn images, where copies of an image are images with
/// adjacent ids.
pub fn bootstrap(problem: &Problem, config: &MetricConfig, settings: Bootstrap) -> Samples {
    let groups = Groups::new(problem);
    let all = 0..problem.categories.len();
    let categories: Vec<Vec<Weighted>> = all
        .clone()
        .into_par_iter()
        .with_max_len(1)
        .map(|k| weighted::category(problem, config, &groups, k))
        .collect();
    let wanted = mean_precisions(config);
    let values: Vec<Values> = (0..settings.replicates)
        .into_par_iter()
        .map_init(Vec::new, |table, replicate| {
            let weights = settings.draw(groups.images, replicate);
            one(&categories, config, &wanted, &weights, table)
        })
        .collect();
    let number =
        |(i, n): (usize, MeanPrecision)| (n.name, values.iter().map(|v| v.numbers[i]).collect());
    Samples {
        settings,
        numbers: wanted.into_iter().enumerate().map(number).collect(),
        categories: all.map(|k| values.iter().map(|v| v.categories[k]).collect()).collect(),
    }
}

/// Values of one sample.
struct Values {
    numbers: Vec<f64>,
    categories: Vec<f64>,
}

/// Evaluates one sample. `table` is a buffer.
fn one(
    categories: &[Vec<Weighted>],
    config: &MetricConfig,
    wanted: &[MeanPrecision],
    weights: &[u32],
    table: &mut Vec<f64>,
) -> Values {
    let (width, rows) = (categories.len(), config.iou.len() * RECALLS);
    // `[T, R, K]`, the order in which the evaluation adds.
    table.resize(rows * width, 0.0);
    let mut column = vec![0.0; rows];
    let mut out = Values { numbers: vec![-1.0; wanted.len()], categories: vec![] };
    for area in 0..config.areas.len() {
        for (k, category) in categories.iter().enumerate() {
            category[area].precision(weights, &mut column);
            if area == 0 {
                out.categories.push(mean(column.iter().copied()));
            }
            for (row, &value) in column.iter().enumerate() {
                table[row * width + k] = value;
            }
        }
        let of_threshold = |&t: &usize| &table[t * RECALLS * width..(t + 1) * RECALLS * width];
        for (number, n) in out.numbers.iter_mut().zip(wanted).filter(|(_, n)| n.area == area) {
            *number = mean(n.thresholds.iter().flat_map(of_threshold).copied());
        }
    }
    out
}

/// Lowest and highest value of an interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Percentile 2.5.
    pub low: f64,
    /// Percentile 97.5.
    pub high: f64,
}

impl Interval {
    /// The interval of a number from its samples, except those that are -1. `None` if none are
    /// left.
    pub fn of(samples: &[f64]) -> Option<Self> {
        Self::between(samples.iter().copied().filter(|&v| v > -1.0).collect())
    }

    /// The interval of the difference `b - a` of paired samples, except pairs with a -1. `None` if
    /// none are left.
    pub fn of_difference(a: &[f64], b: &[f64]) -> Option<Self> {
        let pairs = a.iter().zip(b).filter(|(a, b)| **a > -1.0 && **b > -1.0);
        Self::between(pairs.map(|(a, b)| b - a).collect())
    }

    /// Whether all values of the interval are above 0, or all below.
    pub fn excludes_zero(self) -> bool {
        self.low > 0.0 || self.high < 0.0
    }

    fn between(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        let tail = (1.0 - LEVEL) / 2.0;
        Some(Self { low: percentile(&values, tail)?, high: percentile(&values, 1.0 - tail)? })
    }
}

/// Percentile of ascending values by numpy's default method: linear interpolation between the two
/// nearest values.
fn percentile(values: &[f64], fraction: f64) -> Option<f64> {
    let at = fraction * values.len().checked_sub(1)? as f64;
    let (low, part) = (values[at as usize], at.fract());
    let high = values.get(at as usize + 1).copied().unwrap_or(low);
    Some(low + part * (high - low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_percentiles_without_undefined_samples() {
        let mut values: Vec<f64> = (0..=1000).rev().map(|i| f64::from(i) / 1000.0).collect();
        values.push(-1.0);
        let interval = Interval::of(&values).unwrap();
        assert!((interval.low - 0.025).abs() < 1e-12 && (interval.high - 0.975).abs() < 1e-12);
        assert_eq!(Interval::of(&[-1.0]), None);
        assert_eq!(Interval::of(&[0.5]), Some(Interval { low: 0.5, high: 0.5 }));
    }

    #[test]
    fn differences_are_paired() {
        let (a, b) = ([0.1, 0.5, -1.0, 0.9], [0.2, 0.6, 0.3, -1.0]);
        let interval = Interval::of_difference(&a, &b).unwrap();
        assert!((interval.low - 0.1).abs() < 1e-12 && interval.excludes_zero());
        assert!(!Interval::of_difference(&[0.0; 2], &[-0.1, 0.1]).unwrap().excludes_zero());
    }

    #[test]
    fn draws_are_seeded_and_have_as_many_images() {
        let settings = Bootstrap { replicates: 2, seed: 3 };
        let draw = settings.draw(500, 0);
        assert_eq!(draw.iter().sum::<u32>(), 500);
        assert_eq!(draw, settings.draw(500, 0));
        assert_ne!(draw, settings.draw(500, 1));
        assert_ne!(draw, Bootstrap { seed: 4, ..settings }.draw(500, 0));
        // About a fraction 1/e of the images is not drawn.
        let missing = draw.iter().filter(|&&n| n == 0).count();
        assert!((150..220).contains(&missing), "{missing}");
        assert!(settings.draw(0, 0).is_empty());
    }
}
