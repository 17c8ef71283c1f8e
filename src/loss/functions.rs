//! Element-wise loss functions, without reduction.

use tch::{Reduction, Tensor};

/// Binary cross entropy of probabilities `p` of any shape with a constant target of 0 or 1:
/// `-max(ln p, -100)` for target 1, `-max(ln(1 - p), -100)` for target 0, with libtorch's gradient.
///
/// All `p` must be in `0..=1` and not NaN: libtorch rejects other values, on a GPU by a device-side
/// assertion that aborts the process.
///
/// ```
/// use dw::loss::functions::bce;
/// use tch::Tensor;
///
/// let p = Tensor::from_slice(&[1.0, 0.5, 0.0]);
/// let loss = Vec::<f64>::try_from(bce(&p, 1.0)).unwrap();
/// assert_eq!((loss[0], loss[2]), (0.0, 100.0));
/// assert!((loss[1] - 2f64.ln()).abs() < 1e-12);
/// ```
pub fn bce(p: &Tensor, target: f64) -> Tensor {
    let target = Tensor::full([1], target, (p.kind(), p.device())).expand_as(p);
    p.binary_cross_entropy::<Tensor>(&target, None, Reduction::None)
}

/// Binary cross entropy of `logits` with targets in `0..=1`, both of the same shape.
///
/// ```
/// use dw::loss::functions::bce_with_logits;
/// use tch::Tensor;
///
/// let (logits, target) = (Tensor::from_slice(&[0.0]), Tensor::from_slice(&[0.25]));
/// // -(0.25 ln 0.5 + 0.75 ln 0.5)
/// let loss = bce_with_logits(&logits, &target).double_value(&[0]);
/// assert!((loss - 2f64.ln()).abs() < 1e-12);
/// ```
pub fn bce_with_logits(logits: &Tensor, target: &Tensor) -> Tensor {
    logits.binary_cross_entropy_with_logits::<Tensor>(target, None, None, Reduction::None)
}

/// Varifocal loss (VarifocalNet; Zhang et al., CVPR 2021, Eq. 2, alpha 0.75, gamma 2) of `logits`
/// with targets in `0..=1`, both of the same shape: binary cross entropy, weighted by the target
/// where it is above 0, and by 0.75 times the squared probability where it is 0.
///
/// ```
/// use dw::loss::functions::varifocal;
/// use tch::Tensor;
///
/// let (logits, target) = (Tensor::from_slice(&[0.0, 0.0]), Tensor::from_slice(&[0.5, 0.0]));
/// let loss = Vec::<f64>::try_from(varifocal(&logits, &target)).unwrap();
/// assert!((loss[0] - 0.5 * 2f64.ln()).abs() < 1e-12);
/// assert!((loss[1] - 0.75 * 0.25 * 2f64.ln()).abs() < 1e-12);
/// ```
pub fn varifocal(logits: &Tensor, target: &Tensor) -> Tensor {
    let negative = logits.sigmoid().square() * 0.75;
    let weight = target.where_self(&target.gt(0.0), &negative);
    bce_with_logits(logits, target) * weight
}

/// Sigmoid focal loss (Lin et al., ICCV 2017, Eq. 5) of `logits` with targets 0 or 1, both of the
/// same shape: `-alpha_t (1 - p_t)^gamma ln p_t`, where `p_t` is the probability of the target and
/// `alpha_t` is `alpha` for target 1 and `1 - alpha` for target 0.
///
/// ```
/// use dw::loss::functions::focal;
/// use tch::Tensor;
///
/// // p_t = 0.5 for both targets.
/// let (logits, target) = (Tensor::from_slice(&[0.0, 0.0]), Tensor::from_slice(&[1.0, 0.0]));
/// let loss = Vec::<f64>::try_from(focal(&logits, &target, 0.25, 2.0)).unwrap();
/// for (loss, alpha_t) in loss.iter().zip([0.25f64, 0.75]) {
///     assert!((loss - alpha_t * 0.25 * 2f64.ln()).abs() < 1e-12);
/// }
/// ```
pub fn focal(logits: &Tensor, target: &Tensor, alpha: f64, gamma: f64) -> Tensor {
    let (p, other) = (logits.sigmoid(), target.neg() + 1.0);
    // 1 - p_t
    let wrong = &p * &other + (-&p + 1.0) * target;
    let alpha_t = target * alpha + other * (1.0 - alpha);
    bce_with_logits(logits, target) * alpha_t * wrong.pow_tensor_scalar(gamma)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn focal_loss_equals_the_formula() {
        let logits = Tensor::from_slice(&[0.0f64, 2.0, -1.0]);
        let target = Tensor::from_slice(&[1.0f64, 0.0, 0.0]);
        let found: Vec<f64> = focal(&logits, &target, 0.25, 2.0).try_into().unwrap();
        let formula = |p_t: f64, alpha_t: f64| alpha_t * (1.0 - p_t).powi(2) * -p_t.ln();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        for (found, expected) in found.iter().zip([
            formula(0.5, 0.25),
            formula(1.0 - sigmoid(2.0), 0.75),
            formula(1.0 - sigmoid(-1.0), 0.75),
        ]) {
            assert!((found - expected).abs() < 1e-14, "{found} {expected}");
        }
    }

    #[test]
    fn cross_entropy_is_clamped_at_100() {
        let p = Tensor::from_slice(&[0.0f64, 1.0, 0.5]);
        let ones: Vec<f64> = bce(&p, 1.0).try_into().unwrap();
        assert_eq!((ones[0], ones[1]), (100.0, 0.0));
        assert!((ones[2] - 2f64.ln()).abs() < 1e-15);
    }
}
