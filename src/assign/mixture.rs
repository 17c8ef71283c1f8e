//! Mixtures of two one-dimensional Gaussians, fitted to many sets of samples at once.
//!
//! Follows scikit-learn's `GaussianMixture(2, covariance_type="diag")` with given initial values:
//! expectation maximisation until the mean log-likelihood changes by less than 1e-3, for at most
//! 100 iterations. All sets go through all iterations, because the host does not know when one has
//! converged; a converged set keeps its parameters.
//!
//! Shapes: G sets, S samples of a set (some of them masked), 2 components.

use std::f64::consts::TAU;

use tch::{Kind, Tensor};

/// Number of iterations of a fit.
const ROUNDS: usize = 100;
/// A fit has converged when the mean log-likelihood changes by less than this.
const TOLERANCE: f64 = 1e-3;
/// Added to the variances.
const REGULARISATION: f64 = 1e-6;

/// Fitted mixtures.
#[derive(Debug)]
pub struct Mixture {
    /// Weights of the components `[G, 2]`.
    weight: Tensor,
    /// Means `[G, 2]`.
    mean: Tensor,
    /// Variances `[G, 2]`.
    variance: Tensor,
}

impl Mixture {
    /// Fits mixtures to the samples `[G, S]` whose `mask` `[G, S]`, of the same kind, is 1 rather
    /// than 0. The components start with equal weights and variance 1, one at the smallest and one
    /// at the largest sample.
    pub fn fit(samples_gs: &Tensor, mask_gs: &Tensor) -> Self {
        let (kind, device) = (samples_gs.kind(), samples_gs.device());
        let is_sample = mask_gs.gt(0.0);
        let low = samples_gs.where_scalarother(&is_sample, f64::INFINITY).amin([1], false);
        let high = samples_gs.where_scalarother(&is_sample, f64::NEG_INFINITY).amax([1], false);
        let mean = Tensor::stack(&[low, high], 1).nan_to_num(0.0, 0.0, 0.0);
        let mut fit =
            Self { weight: Tensor::full_like(&mean, 0.5), variance: mean.ones_like(), mean };
        let count_g = mask_gs.sum_dim_intlist(1, false, None).clamp_min(1.0);
        // Masked samples are set to 0, so that no mean depends on their values.
        let samples_gs = samples_gs.where_scalarother(&is_sample, 0.0);
        let mut bound_g = Tensor::full_like(&count_g, f64::NEG_INFINITY);
        let mut goes_on_g = Tensor::ones(count_g.size(), (Kind::Bool, device));
        for _ in 0..ROUNDS {
            let joint_gs2 = fit.log_joint(&samples_gs);
            let log_gs = joint_gs2.logsumexp([-1i64], false);
            let next_bound_g = (&log_gs * mask_gs).sum_dim_intlist(1, false, None) / &count_g;
            let share_gs2 = (joint_gs2 - log_gs.unsqueeze(-1)).exp() * mask_gs.unsqueeze(-1);
            let next = Self::of_shares(&samples_gs, &share_gs2, epsilon(kind));
            fit = fit.replaced_by(&next, &goes_on_g.unsqueeze(-1));
            let has_converged_g = (&next_bound_g - &bound_g).abs().lt(TOLERANCE);
            bound_g = next_bound_g.where_self(&goes_on_g, &bound_g);
            goes_on_g = goes_on_g.logical_and(&has_converged_g.logical_not());
        }
        fit
    }

    /// The parameters of maximum likelihood, given the responsibility (share) of each component for
    /// each sample.
    fn of_shares(samples_gs: &Tensor, share_gs2: &Tensor, epsilon: f64) -> Self {
        let sum = |t_gs2: &Tensor| t_gs2.sum_dim_intlist(1, false, None);
        let x_gs1 = samples_gs.unsqueeze(-1);
        let count = sum(share_gs2) + 10.0 * epsilon;
        let mean = sum(&(share_gs2 * &x_gs1)) / &count;
        let square = sum(&(share_gs2 * x_gs1.square())) / &count;
        // The difference of nearly equal numbers can be negative by rounding.
        let variance = (square - mean.square()).clamp_min(0.0) + REGULARISATION;
        let weight = &count / count.sum_dim_intlist(1, true, None);
        Self { weight, mean, variance }
    }

    /// Takes the parameters of `next` for the sets where `which_g1` is true, and keeps those of the
    /// others.
    fn replaced_by(&self, next: &Self, which_g1: &Tensor) -> Self {
        Self {
            weight: next.weight.where_self(which_g1, &self.weight),
            mean: next.mean.where_self(which_g1, &self.mean),
            variance: next.variance.where_self(which_g1, &self.variance),
        }
    }

    /// Logarithm of weight times density of each component at each sample, `[G, S, 2]`. Its
    /// `logsumexp` is the log-likelihood; the sample belongs to the component with the larger
    /// value.
    pub fn log_joint(&self, samples_gs: &Tensor) -> Tensor {
        let of_set = |t: &Tensor| t.unsqueeze(1);
        let squared = (samples_gs.unsqueeze(-1) - of_set(&self.mean)).square();
        let density =
            (squared / of_set(&self.variance) + of_set(&self.variance).log() + TAU.ln()) * -0.5;
        density + of_set(&self.weight).log()
    }
}

/// Distance from 1 to the next larger number.
fn epsilon(kind: Kind) -> f64 {
    if kind == Kind::Double { f64::EPSILON } else { f64::from(f32::EPSILON) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_groups_of_samples_are_told_apart_and_masked_ones_ignored() {
        let x = Tensor::from_slice(&[
            0.1, 0.2, 0.15, 2.0, 2.1, 99.0, //
            1.0, 1.0, 1.0, 1.0, 1.0, 1.0, //
            7.0, 8.0, 9.0, 10.0, 11.0, 12.0,
        ])
        .view([3, 6]);
        let mask = Tensor::from_slice(&[
            1.0, 1.0, 1.0, 1.0, 1.0, 0.0, //
            1.0, 1.0, 1.0, 1.0, 1.0, 1.0, //
            0.0, 0.0, 0.0, 0.0, 0.0, 0.0,
        ])
        .view([3, 6]);
        let fit = Mixture::fit(&x, &mask);
        let close = |t: Tensor, expected: f64| {
            let found = t.double_value(&[]);
            assert!((found - expected).abs() < 1e-3, "{found} instead of {expected}");
        };
        close(fit.mean.get(0).get(0), 0.15);
        close(fit.mean.get(0).get(1), 2.05);
        close(fit.weight.get(0).get(0), 0.6);
        let component = fit.log_joint(&x).get(0).argmax(-1, false);
        assert_eq!(Vec::<i64>::try_from(component).unwrap()[..5], [0, 0, 0, 1, 1]);
        let finite = fit.mean.isfinite().all().int64_value(&[]);
        assert_eq!(finite, 1, "a set without samples has finite parameters");
    }
}
