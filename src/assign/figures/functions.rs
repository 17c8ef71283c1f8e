//! Weighting functions of scores and IoUs, without a network.

use tch::Tensor;

use super::bags::numbers;
use crate::Result;
use crate::assign::DwConfig;
use crate::assign::strategies::dw::{consistency_weight, negative_probability};
use crate::assign::strategies::weighting::Function;

/// P_neg of IoUs for one exponent gamma1 (Eq. 5).
///
/// # Errors
/// A failure of libtorch.
pub fn p_neg(iou: &[f64], gamma1: f64) -> Result<Vec<f64>> {
    numbers(&negative_probability(&Tensor::from_slice(iou), gamma1))
}

/// The weights of some anchors under one function. Positive and negative weights are each divided
/// by their maximum.
#[derive(Debug)]
pub struct Weighted {
    /// Name of the function.
    pub name: &'static str,
    /// Positive and negative weights.
    pub weights: [Vec<f64>; 2],
}

/// The weights of anchors, given by score and IoU, under GFL, VFL and DW.
///
/// # Errors
/// A failure of libtorch.
pub fn weighted(anchors: &[(f64, f64)]) -> Result<[Weighted; 3]> {
    let (score, iou): (Vec<f64>, Vec<f64>) = anchors.iter().copied().unzip();
    let (score, iou) = (Tensor::from_slice(&score), Tensor::from_slice(&iou));
    let of = |name, positive: &Tensor, negative: &Tensor| {
        let relative = |t: &Tensor| numbers(&(t / t.max()));
        Ok(Weighted { name, weights: [relative(positive)?, relative(negative)?] })
    };
    let table = |name, function: Function| {
        let [positive, p_neg, importance] = function.weights(&score, &iou);
        of(name, &positive, &(p_neg * importance))
    };
    let c = DwConfig::default();
    let positive = consistency_weight(&score, &iou, c.beta, c.mu);
    let importance = score.pow_tensor_scalar(c.gamma2);
    Ok([
        table("GFL", Function::Gfl)?,
        table("VFL", Function::Vfl)?,
        of("DW", &positive, &(negative_probability(&iou, c.gamma1) * importance))?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Fig. 1 of the paper shows: with DW the negative weight does not follow from the
    /// positive one.
    #[test]
    fn dw_weighs_anchors_of_equal_iou_by_their_score() {
        let [_, vfl, dw] = weighted(&[(0.9, 0.9), (0.9, 0.55), (0.3, 0.9)]).unwrap();
        assert_eq!(vfl.weights[0][0], vfl.weights[0][2], "VFL reads the IoU alone");
        assert!(dw.weights[0][0] > 3.0 * dw.weights[0][2]);
        // A high score on a poor box is DW's most important negative, and hardly a positive.
        assert_eq!(dw.weights[1][1], 1.0);
        assert!(dw.weights[0][1] < 0.1);
        assert_eq!(p_neg(&[0.3, 0.5, 0.95, 1.0], 2.0).unwrap(), [1.0, 1.0, 0.0, 0.0]);
    }
}
