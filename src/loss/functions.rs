//! Loss functions of single predictions, without reduction.

use tch::{Reduction, Tensor};

/// `-max(ln p, -100)` for target 1, `-max(ln(1 - p), -100)` for target 0, of probabilities `p` of any shape, with
/// libtorch's own gradient. `p` must lie in 0..=1: on a GPU libtorch ends the process otherwise.
pub fn bce(p: &Tensor, target: f64) -> Tensor {
    let target = Tensor::full([1], target, (p.kind(), p.device())).expand_as(p);
    p.binary_cross_entropy::<Tensor>(&target, None, Reduction::None)
}

/// Binary cross entropy of logits with targets in 0..=1, of one shape.
pub fn bce_with_logits(logits: &Tensor, target: &Tensor) -> Tensor {
    logits.binary_cross_entropy_with_logits::<Tensor>(target, None, None, Reduction::None)
}

/// Sigmoid focal loss (Lin et al., ICCV 2017, Eq. 5) of logits with targets 0 or 1, of one shape: the cross entropy
/// times `e^gamma`, `e` being the probability of the wrong answer, times `alpha` for target 1 and `1 - alpha` for 0.
pub fn focal(logits: &Tensor, target: &Tensor, alpha: f64, gamma: f64) -> Tensor {
    let (p, other) = (logits.sigmoid(), target.neg() + 1.0);
    let wrong = &p * &other + (-&p + 1.0) * target;
    let weight = target * alpha + other * (1.0 - alpha);
    bce_with_logits(logits, target) * weight * wrong.pow_tensor_scalar(gamma)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn focal_loss_by_hand() {
        let logits = Tensor::from_slice(&[0.0f64, 2.0, -1.0]);
        let target = Tensor::from_slice(&[1.0f64, 0.0, 0.0]);
        let found: Vec<f64> = focal(&logits, &target, 0.25, 2.0).try_into().unwrap();
        let by_hand = |p: f64, alpha: f64| alpha * (1.0 - p).powi(2) * -p.ln();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        for (found, expected) in found.iter().zip([
            by_hand(0.5, 0.25),
            by_hand(1.0 - sigmoid(2.0), 0.75),
            by_hand(1.0 - sigmoid(-1.0), 0.75),
        ]) {
            assert!((found - expected).abs() < 1e-14, "{found} {expected}");
        }
    }

    #[test]
    fn probabilities_of_zero_and_one_cost_at_most_a_hundred() {
        let p = Tensor::from_slice(&[0.0f64, 1.0, 0.5]);
        let ones: Vec<f64> = bce(&p, 1.0).try_into().unwrap();
        assert_eq!((ones[0], ones[1]), (100.0, 0.0));
        assert!((ones[2] - 2f64.ln()).abs() < 1e-15);
    }
}
