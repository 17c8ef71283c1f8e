//! PAA (Kim and Lee, ECCV 2020): a mixture of two Gaussians is fitted to the losses of the anchors
//! that overlap a box, and those in the component of lower loss are positive.
//!
//! Shapes: B images, P points over all levels, C classes, G boxes, N potential positives, S samples
//! of a box.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::assign::adaptive::{anchor_iou, valid_cells};
use crate::assign::mixture::Mixture;
use crate::assign::positives::{F32_EPSILON, Positives};
use crate::assign::{
    Criterion, ImageBoxes, Matcher, PointTargets, Probe, Progress, Strategy, StrategyConfig,
    Targets,
};
use crate::geometry::{Grid, STRIDES};
use crate::loss::functions::{bce_with_logits, focal};
use crate::loss::{Normaliser, Term};
use crate::model::{Distances, Inference, ModelConfig, Params, Predictions, Rank, Tower};

/// `[assign]` with `kind = "paa"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PaaConfig {
    /// Samples of a box: its potential positives with the lowest losses, at most this many per
    /// level.
    pub topk: usize,
    /// An anchor with at least this IoU with a box is a potential positive of the box.
    pub iou: f64,
    /// Whether each detected box is replaced by the weighted mean of the candidates around it
    /// (score voting).
    pub vote: bool,
}

impl Default for PaaConfig {
    fn default() -> Self {
        Self { topk: 9, iou: 0.1, vote: true }
    }
}

const FOCAL_ALPHA: f64 = 0.25;
const FOCAL_GAMMA: f64 = 2.0;
/// Weights of the terms.
const BOX_WEIGHT: f64 = 1.3;
const IOU_WEIGHT: f64 = 0.5;
/// Stands for losses that are not finite in the order of the samples.
const LARGEST: f64 = 1e30;
/// Lower bound of the IoU where it is the weight of a box loss.
const SMALLEST_IOU: f64 = 1e-12;

impl StrategyConfig for PaaConfig {
    fn kind(&self) -> &'static str {
        "paa"
    }

    fn check(&self) -> Result<(), String> {
        let Self { topk, iou, .. } = *self;
        if !(1..=1000).contains(&topk) {
            return Err(format!("`assign.topk`: expected 1 to 1000 anchors a level; found {topk}"));
        }
        if iou > 0.0 && iou < 1.0 {
            return Ok(());
        }
        Err(format!("`assign.iou`: expected a number above 0 and below 1; found {iou}"))
    }

    fn caution(&self, model: &ModelConfig) -> Option<String> {
        model.unlike("PAA", Distances::Deltas, Tower::Reg, false)
    }

    fn summary(&self) -> String {
        let Self { topk, iou, vote } = self;
        let vote = if *vote { "with" } else { "without" };
        format!("PAA, {topk} anchors a level from IoU {iou}, {vote} score voting")
    }

    fn build(&self, _: &mut Params, _: i64) -> Strategy {
        Strategy {
            matcher: Arc::new(Overlapping { iou: self.iou as f32 }),
            criterion: Box::new(Probabilistic { topk: self.topk as i64 }),
            inference: Inference { rank: Rank::Root, vote: self.vote },
        }
    }
}

/// Finds the potential positives: the points whose anchor has an IoU of at least `iou` with a box,
/// and for every box also the points with the largest IoU, however small that is.
struct Overlapping {
    iou: f32,
}

impl Matcher for Overlapping {
    /// The corner: mmdetection's anchors are centred on the corners of the cells.
    fn offset(&self) -> f64 {
        0.0
    }

    fn targets(&self, grid: &Grid, images: &[ImageBoxes]) -> Targets {
        let mut out = PointTargets::default();
        for (i, image) in images.iter().enumerate() {
            let valid = valid_cells(grid, image);
            out.ignore_outside(grid, &valid, i as i64 * grid.num_points());
            out.add_image(i, image, grid, self.owners(grid, &valid, image));
        }
        Targets::Points(out.tensors())
    }
}

impl Overlapping {
    /// The box of each point of an image.
    fn owners(&self, grid: &Grid, valid: &[(i64, i64)], image: &ImageBoxes) -> Vec<Option<usize>> {
        let num_points = grid.num_points() as usize;
        let mut best = vec![(0.0f32, None); num_points];
        // The largest IoU of each box, and the points that have it.
        let mut nearest: Vec<(f32, Vec<usize>)> = vec![(-1.0, vec![]); image.boxes.len()];
        let mut first = 0;
        for ((&(h, w), &(rows, cols)), &stride) in grid.sizes.iter().zip(valid).zip(&STRIDES) {
            let s = stride as f32;
            let at = |i: i64| (i as f32 + grid.offset as f32) * s;
            for (row, col) in (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col))) {
                let point = (first + row * w + col) as usize;
                for (gt, b) in image.boxes.iter().enumerate() {
                    let iou = anchor_iou([at(col), at(row)], s, b);
                    if iou >= self.iou && iou > best[point].0 {
                        best[point] = (iou, Some(gt));
                    }
                    let (largest, points) = &mut nearest[gt];
                    if iou > *largest {
                        *largest = iou;
                        points.clear();
                    }
                    if iou >= *largest {
                        points.push(point);
                    }
                }
            }
            first += h * w;
        }
        let mut owners: Vec<Option<usize>> = best.into_iter().map(|b| b.1).collect();
        for (gt, (_, points)) in nearest.into_iter().enumerate() {
            for point in points {
                owners[point] = Some(gt);
            }
        }
        owners
    }
}

/// Focal loss over all points, box loss and IoU prediction over those that the mixtures select.
struct Probabilistic {
    topk: i64,
}

impl Criterion for Probabilistic {
    /// The probe records the loss of each potential positive (`candidate_loss` `[N]`), and whether
    /// it is positive (`selected` `[N]`).
    fn terms(
        &self,
        predicted: &Predictions,
        targets: &Targets,
        _: &Progress,
        probe: &mut dyn Probe,
    ) -> Vec<Term> {
        let positive = Positives::new(predicted, targets);
        let (t, cls_bpc) = (positive.targets, &predicted.cls);
        let (iou_n, giou_n) = positive.iou_and_giou();
        let iou_n = iou_n.detach();
        let selected_n = tch::no_grad(|| {
            let loss_n = candidate_loss(&positive, predicted, &giou_n);
            probe.record("candidate_loss", &loss_n);
            self.selected(&positive, &predicted.grid, &loss_n)
        });
        probe.record("selected", &selected_n);
        let one_hot = positive.class_targets(cls_bpc, &selected_n);
        let focal_bpc = focal(cls_bpc, &one_hot, FOCAL_ALPHA, FOCAL_GAMMA);
        let loss_cls = t.without_ignored(focal_bpc).sum(None) + predicted.nan_if_invalid();
        let weight_n = iou_n.clamp_min(SMALLEST_IOU) * &selected_n;
        let loss_bbox = (-(giou_n - 1.0) * weight_n).sum(None) * BOX_WEIGHT;
        let quality_n = predicted.quality().reshape([-1]).index_select(0, &t.positive);
        let loss_iou = (bce_with_logits(&quality_n, &iou_n) * &selected_n).sum(None) * IOU_WEIGHT;

        let count = selected_n.sum(None);
        let by = |value: &Tensor, at_least| {
            let value = value.shallow_clone();
            Normaliser { value, floor: 0.0, at_least, plus: F32_EPSILON }
        };
        let images = cls_bpc.size()[0] as f64;
        let by_iou = by(&(iou_n * selected_n).sum(None), 0.0);
        let term = |name, sum, by, needs_positives| Term { name, sum, by, needs_positives };
        vec![
            term("loss_cls", loss_cls, by(&count, images), false),
            term("loss_bbox", loss_bbox, by_iou, true),
            term("loss_iou", loss_iou, by(&count, 0.0), true),
        ]
    }
}

/// The loss of each potential positive if it were positive `[N]`.
fn candidate_loss(positive: &Positives, predicted: &Predictions, giou_n: &Tensor) -> Tensor {
    let logits_nc = positive.rows(&predicted.cls);
    let one_hot = logits_nc.zeros_like().scatter_value(1, &positive.labels.unsqueeze(1), 1.0);
    let focal_nc = focal(&logits_nc, &one_hot, FOCAL_ALPHA, FOCAL_GAMMA);
    focal_nc.sum_dim_intlist(1, false, None) + (-(giou_n - 1.0)) * BOX_WEIGHT
}

impl Probabilistic {
    /// Which potential positives are positive `[N]`, 1 or 0.
    fn selected(&self, positive: &Positives, grid: &Grid, loss_n: &Tensor) -> Tensor {
        let (t, levels) = (positive.targets, STRIDES.len() as i64);
        // Sorting puts NaN behind infinity, where those that are no samples are. The term is NaN
        // all the same.
        let loss_n = &loss_n.nan_to_num(LARGEST, LARGEST, -LARGEST);
        let (num_gt, most) = (t.labels.size()[0], self.topk * levels);
        let point_n = t.positive.remainder(grid.num_points());
        let group_n = &t.gt * levels + grid.levels(loss_n.device()).index_select(0, &point_n);
        let is_sample_n = rank_in_group(&group_n, num_gt * levels, loss_n).lt(self.topk);
        // Within each box the samples come first.
        let order_n = loss_n.where_scalarother(&is_sample_n, f64::INFINITY);
        let rank_n = rank_in_group(&t.gt, num_gt, &order_n);

        // Samples of each box by ascending loss, `[G, S]`. Potential positives that are no samples
        // go to an extra entry at the end.
        let none = num_gt * most;
        let place_n = (&t.gt * most + &rank_n).where_scalarother(&is_sample_n, none);
        let zeros = || Tensor::zeros([none + 1], (loss_n.kind(), loss_n.device()));
        let matrix = |t: Tensor| t.narrow(0, 0, none).view([num_gt, most]);
        let loss_gs = matrix(zeros().index_copy(0, &place_n, loss_n));
        let mask_gs = matrix(zeros().index_fill(0, &place_n, 1.0));
        let selected_gs = better_part(&loss_gs, &mask_gs);
        let flat = Tensor::cat(&[selected_gs.view([-1]), zeros().narrow(0, 0, 1)], 0);
        flat.index_select(0, &place_n)
    }
}

/// Which samples are positive `[G, S]`, 1 or 0: those of the first component of the mixture, up to
/// the one of the highest likelihood. Samples are in order of ascending loss. Boxes with fewer than
/// two samples have no positives.
fn better_part(loss_gs: &Tensor, mask_gs: &Tensor) -> Tensor {
    let kind = loss_gs.kind();
    let joint_gs2 = Mixture::fit(loss_gs, mask_gs).log_joint(loss_gs);
    // The first component on a tie.
    let is_first = joint_gs2.select(-1, 0).ge_tensor(&joint_gs2.select(-1, 1));
    let is_first = is_first.logical_and(&mask_gs.gt(0.0));
    let likelihood = joint_gs2.logsumexp([-1i64], false);
    let likelihood = likelihood.where_scalarother(&is_first, f64::NEG_INFINITY);
    // The first of the largest ones, found by position: which of equal values `argmax` returns is
    // not defined.
    let position = Tensor::arange(loss_gs.size()[1], (Kind::Int64, loss_gs.device()));
    let is_largest = likelihood.eq_tensor(&likelihood.amax([1], true));
    let last = position.where_scalarother(&is_largest, i64::MAX).amin([1], true);
    let enough = mask_gs.sum_dim_intlist(1, true, None).ge(2.0);
    is_first.logical_and(&position.le_tensor(&last)).logical_and(&enough).to_kind(kind)
}

/// Rank of each of N values within its group by ascending value, from 0, `[N]`; equal values keep
/// their order. Groups are `0..num_groups`.
fn rank_in_group(group_n: &Tensor, num_groups: i64, value_n: &Tensor) -> Tensor {
    let by_value = value_n.argsort_stable(true, 0, false);
    let by_group = group_n.index_select(0, &by_value).argsort_stable(true, 0, false);
    let order = by_value.index_select(0, &by_group);
    let count = Tensor::zeros([num_groups], (Kind::Int64, group_n.device())).index_add(
        0,
        group_n,
        &group_n.ones_like(),
    );
    let start = count.cumsum(0, Kind::Int64) - count;
    let position = Tensor::arange(group_n.size()[0], (Kind::Int64, group_n.device()));
    let rank = position - start.index_select(0, group_n).index_select(0, &order);
    rank.zeros_like().index_copy(0, &order, &rank)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::level_sizes;

    #[test]
    fn ranks_count_within_each_group() {
        let group = Tensor::from_slice(&[1i64, 0, 1, 1, 0, 3]);
        let value = Tensor::from_slice(&[5.0, 2.0, 4.0, 5.0, 1.0, f64::INFINITY]);
        let rank: Vec<i64> = rank_in_group(&group, 4, &value).try_into().unwrap();
        assert_eq!(rank, [1, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn every_box_has_a_potential_positive() {
        let sizes = level_sizes(64, 64).to_vec();
        let grid = Grid { sizes, offset: 0.0 };
        // 1 x 1 pixel: no anchor has an IoU of 0.1 with it.
        let boxes = vec![[20.0, 20.0, 21.0, 21.0], [0.0, 0.0, 64.0, 64.0]];
        let image = ImageBoxes { boxes, labels: vec![0, 1], padded: None };
        let targets = Overlapping { iou: 0.1 }.targets(&grid, &[image]);
        let gt: Vec<i64> = (&targets.points().gt).try_into().unwrap();
        assert!(gt.contains(&0) && gt.contains(&1));
        assert!(gt.iter().filter(|g| **g == 1).count() > 10);
    }
}
