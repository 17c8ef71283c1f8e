//! Shared by the soft assigners: points inside boxes; scores, IoU and GIoU of the pairs; the centre
//! prior.
//!
//! Shapes: B images, P points over all levels, C classes, G boxes, N pairs.

use tch::Tensor;

use super::pairs::columns;
use super::{ImageBoxes, Matcher, PairTensors, Pairs, Targets};
use crate::geometry::{Grid, iou_and_giou};
use crate::model::Predictions;

/// Largest magnitude of predicted distances in the loss, pixels.
const MAX_DISTANCE: f64 = 1e9;

/// Finds the points inside each box.
#[derive(Debug)]
pub struct InsidePoints {
    /// Number of classes.
    pub classes: i64,
    /// [`Matcher::offset`].
    pub offset: f64,
}

impl Matcher for InsidePoints {
    fn offset(&self) -> f64 {
        self.offset
    }

    fn targets(&self, grid: &Grid, images: &[ImageBoxes]) -> Targets {
        Targets::Pairs(Pairs::new(grid, self.classes, images, &|_, _| ()).tensors())
    }
}

/// Predictions as the criteria read them: finite, on one device and with floats of one kind.
#[derive(Debug)]
pub struct SoftInputs<'a> {
    pairs: &'a PairTensors,
    /// Class score times objectness `[B, P, C]`; the class score alone on a head without
    /// objectness.
    pub score_bpc: Tensor,
    /// Predicted distances `[B, P, 4]`, pixels.
    pub ltrb_bp4: Tensor,
    /// IoU of the predicted box and the ground truth of each pair `[N]`, without gradient.
    pub iou_n: Tensor,
    /// 1 - GIoU of the same boxes `[N]`.
    pub giou_loss_n: Tensor,
    /// A scalar to add to every term: 0, or NaN if a prediction is not finite.
    pub invalid: Tensor,
}

impl<'a> SoftInputs<'a> {
    /// Prepares the predictions. Areas used as denominators are at least `area_eps` square pixels.
    pub fn new(predicted: &Predictions, pairs: &'a PairTensors, area_eps: f64) -> Self {
        let score = match &predicted.quality {
            Some(quality) => predicted.probabilities() * quality.sigmoid().unsqueeze(-1),
            None => predicted.probabilities(),
        };
        // libtorch's cross entropy rejects NaN, on a GPU by a device-side assertion that aborts the
        // process. `invalid` makes the terms NaN instead.
        let score_bpc = score.nan_to_num(0.5, 1.0, 0.0);
        // The bound keeps areas and their products finite in f32.
        let ltrb_bp4 =
            predicted.distances.nan_to_num(0.5, None, None).clamp(-MAX_DISTANCE, MAX_DISTANCE);
        // Predicted box and ground truth are distances from the same point, so neither is decoded.
        // (The reference decodes both, which rounds relative to the coordinates instead of the box
        // size.)
        let ltrb_4n = columns(&ltrb_bp4.reshape([-1, 4]), &pairs.point);
        let (iou_n, giou_n) = iou_and_giou(&ltrb_4n, &pairs.target, area_eps);
        Self {
            pairs,
            score_bpc,
            ltrb_bp4,
            iou_n: iou_n.detach(),
            giou_loss_n: -(giou_n - 1.0),
            invalid: predicted.nan_if_invalid(),
        }
    }

    /// Score of each pair `[N]`, for the class of its box.
    pub fn score_n(&self) -> Tensor {
        let index_n = self.pairs.logit_index.index_select(0, &self.pairs.logit);
        self.score_bpc.reshape([-1]).index_select(0, &index_n)
    }

    /// Number of boxes of the batch, as a scalar.
    pub fn num_boxes(&self) -> Tensor {
        let options = (self.score_bpc.kind(), self.score_bpc.device());
        Tensor::full([] as [i64; 0], self.pairs.labels.numel() as f64, options)
    }
}

/// Centre prior: a Gaussian for each class and axis, of a point's offset from the centre of a box.
#[derive(Debug)]
pub struct CenterPrior {
    /// Means (x, y) `[C, 2]`, strides.
    pub mean: Tensor,
    /// Standard deviations (x, y) `[C, 2]`, strides.
    pub sigma: Tensor,
}

impl CenterPrior {
    /// The prior of each pair `[N]`.
    pub fn of(&self, pairs: &PairTensors) -> Tensor {
        let labels_n = pairs.labels.index_select(0, &pairs.gt);
        let squared_2n = (pairs.center_offset() - columns(&self.mean, &labels_n)).square();
        let gauss_2n = (squared_2n / (columns(&self.sigma, &labels_n).square() * -2.0)).exp();
        gauss_2n.get(0) * gauss_2n.get(1)
    }
}

/// Localisation score `exp(-beta (1 - GIoU))`. GIoU can exceed 1 by rounding, and libtorch's cross
/// entropy rejects probabilities above 1, on a GPU by a device-side assertion that aborts the
/// process.
pub fn localisation(giou_loss: &Tensor, beta: f64) -> Tensor {
    (giou_loss * -beta).exp().clamp_max(1.0)
}
