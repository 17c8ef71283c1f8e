//! Means over seeds, and confidence intervals of differences paired by seed.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// Confidence of an interval.
pub const CONFIDENCE: f64 = 0.95;

/// A mean with the half width of its confidence interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Mean.
    pub mean: f64,
    /// Half the width of the interval; `None` for fewer than two values.
    pub half: Option<f64>,
}

impl Estimate {
    /// Mean and two-sided t-interval of independent values; `None` without any.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len() as f64;
        if values.is_empty() {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let half = StudentsT::new(0.0, 1.0, n - 1.0).ok().map(|t| {
            let quantile = t.inverse_cdf(f64::midpoint(1.0, CONFIDENCE));
            quantile * (squares / (n - 1.0) / n).sqrt()
        });
        Some(Self { mean, half })
    }

    /// Whether the interval excludes zero.
    pub fn differs_from_zero(&self) -> bool {
        self.half.is_some_and(|half| self.mean.abs() > half)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 0.975 quantile of Student's t with 2 degrees of freedom, from tables: 4.302653.
    #[test]
    fn intervals_are_those_of_the_t_test() {
        let e = Estimate::of(&[1.0, 2.0, 4.0]).unwrap();
        let standard_error = (7.0_f64 / 3.0 / 3.0).sqrt();
        assert!((e.mean - 7.0 / 3.0).abs() < 1e-12, "{e:?}");
        assert!((e.half.unwrap() - 4.302_653 * standard_error).abs() < 1e-5, "{e:?}");
        assert!(!e.differs_from_zero());
        assert!(Estimate::of(&[1.0, 1.1, 0.9]).unwrap().differs_from_zero());
        assert_eq!(Estimate::of(&[3.0]), Some(Estimate { mean: 3.0, half: None }));
        assert!(!Estimate::of(&[3.0]).unwrap().differs_from_zero());
        assert_eq!(Estimate::of(&[]), None);
    }
}
