//! Losses by the custom CUDA kernels. The released formula of dual weighting takes seven launches
//! instead of more than 150, and one pass over the logits in forward and in backward.

use dw_torch::DwLoss;
use tch::Tensor;

use super::soft::CenterPrior;
use super::{PairTensors, Probe};
use crate::Error;
use crate::model::{ClassOutput, Predictions};

/// Sum and normaliser of the positive, localisation and negative terms of dual weighting in the
/// released formula; `None` if there are no kernels for these predictions, or the kernels cannot be
/// started.
///
/// `settings` are beta, mu, gamma1, gamma2, and the value above which the hard prior is 1, which is
/// negative for the soft prior.
pub fn dual_weighting(
    settings: [f64; 5],
    prior: &CenterPrior,
    predicted: &Predictions,
    pairs: &PairTensors,
    probe: &mut dyn Probe,
) -> Option<[(Tensor, Tensor); 3]> {
    let more = predicted.first.is_some() || predicted.bins.is_some();
    let logits = predicted.cls_is == ClassOutput::Logit;
    if more || !logits || !dw_torch::has_dw_loss(&predicted.cls) {
        return None;
    }
    let PairTensors { point, gt, labels, target, stride, logit_index, logit_last_pair, .. } = pairs;
    let found = dw_torch::dw_loss(
        &predicted.cls,
        &predicted.distances,
        predicted.quality.as_ref(),
        [
            point,
            gt,
            labels,
            target,
            stride,
            &prior.mean,
            &prior.sigma,
            logit_index,
            logit_last_pair,
        ],
        settings.map(|v| v as f32),
    );
    let DwLoss { cls_pos, loc, cls_neg, removed, w_pos, p_neg } = match found {
        Ok(found) => found,
        // As libtorch's operations do when memory is exhausted.
        Err(e @ Error::OutOfMemory(_)) => panic!("the loss: {e}"),
        Err(e) => {
            dw_torch::use_loss_kernels(false);
            tracing::warn!("the loss is computed without the custom CUDA kernels: {e}");
            return None;
        }
    };
    if probe.is_active() {
        let score_u = score_of(predicted, logit_index);
        probe.record("w_neg", &(&p_neg * score_u.pow_tensor_scalar(settings[3])));
        probe.record("w_pos", &w_pos);
        probe.record("p_neg", &p_neg);
    }
    let boxes = Tensor::full_like(&removed, pairs.labels.numel() as f64);
    Some([(cls_pos, boxes.shallow_clone()), (loc, boxes), (cls_neg, removed)])
}

/// Scores of the logits at these positions, without gradient.
fn score_of(predicted: &Predictions, index: &Tensor) -> Tensor {
    let cls = predicted.cls.detach();
    let classes = cls.size()[2];
    let score = cls.reshape([-1]).index_select(0, index).sigmoid();
    match &predicted.quality {
        Some(quality) => {
            let row = index.divide_scalar_mode(classes, "floor");
            score * quality.detach().reshape([-1]).index_select(0, &row).sigmoid()
        }
        None => score,
    }
}
