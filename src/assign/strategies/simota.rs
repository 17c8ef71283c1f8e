//! SimOTA (YOLOX; Ge et al., 2021, Sec. 2): each box is assigned its k points of lowest cost, where
//! k is the sum of the IoUs of its best predictions.
//!
//! Shapes: B images, P points over all levels, C classes, G boxes, K candidates of a box.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::assign::dense::{self, Assigned, BoxesOnly};
use crate::assign::{
    Criterion, PointTensors, Probe, Progress, Strategy, StrategyConfig, Targets, matrix, transport,
};
use crate::loss::functions::bce_with_logits;
use crate::loss::{Normaliser, Term};
use crate::model::{Distances, ModelConfig, Params, Predictions, Rank, Tower};

/// `[assign]` with `kind = "simota"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimotaConfig {
    /// Half the side of the square around a box's centre whose points are candidates, strides.
    pub radius: f64,
    /// Number of the largest IoUs of a box whose sum, rounded down, is the number of points it
    /// takes.
    pub topk: usize,
}

impl Default for SimotaConfig {
    fn default() -> Self {
        Self { radius: 2.5, topk: 10 }
    }
}

/// Weight of the IoU in the cost, and of the box loss.
const COST_BOX_WEIGHT: f64 = 3.0;
const BOX_WEIGHT: f64 = 5.0;
/// Added to the cost of a candidate that is not both inside the box and near its centre.
const OUTSIDE: f64 = 1e5;
/// Cost of a point that is not a candidate: more than any candidate's.
const NEVER: f64 = 1e9;
/// Added to the IoU before its logarithm is taken.
const TINY: f64 = 1e-8;
/// Lower bound of areas used as denominators, square pixels.
const AREA_EPS: f64 = 1e-6;
/// Lower bound of logarithms in the cross entropy of probabilities, as in libtorch.
const LOG_FLOOR: f64 = -100.0;

impl StrategyConfig for SimotaConfig {
    fn kind(&self) -> &'static str {
        "simota"
    }

    fn check(&self) -> Result<(), String> {
        dense::check(self.radius, self.topk)
    }

    fn caution(&self, model: &ModelConfig) -> Option<String> {
        let unlike = model.unlike("simota_r50_fpn_1x", Distances::Relu, Tower::Reg, true);
        let quality = (model.initial_quality > 0.1).then(|| {
            format!(
                "the quality branch is trained on all points, of which few are positive: \
                 simota_r50_fpn_1x starts it at model.initial_quality = 0.01 instead of {}",
                model.initial_quality
            )
        });
        let list: Vec<String> = unlike.into_iter().chain(quality).collect();
        (!list.is_empty()).then(|| list.join("; "))
    }

    fn summary(&self) -> String {
        let Self { radius, topk } = self;
        format!("SimOTA, radius {radius} strides, number of points from the {topk} best IoUs")
    }

    fn build(&self, _: &mut Params, _: i64) -> Strategy {
        Strategy {
            matcher: Arc::new(BoxesOnly { offset: 0.5 }),
            criterion: Box::new(SimplifiedTransport { config: self.clone() }),
            inference: Rank::Score.into(),
        }
    }
}

/// Objectness loss over all points; class and box loss over the positive ones.
struct SimplifiedTransport {
    config: SimotaConfig,
}

impl Criterion for SimplifiedTransport {
    /// The probe records `label`, the class of each point `[B, P]`, C for background.
    fn terms(
        &self,
        predicted: &Predictions,
        targets: &Targets,
        _: &Progress,
        probe: &mut dyn Probe,
    ) -> Vec<Term> {
        let (t, cls_bpc) = (targets.points(), &predicted.cls);
        let classes = cls_bpc.size()[2];
        let assigned = tch::no_grad(|| self.assign(predicted, t));
        probe.record("label", &assigned.labels(t, classes));
        let positive_bp = &assigned.positive;
        let (iou_bp, _) = assigned.iou_and_giou(predicted, t, AREA_EPS);
        let target_bpc = assigned.class_targets(t, classes, &iou_bp.detach());
        let loss_cls = bce_with_logits(cls_bpc, &target_bpc) * positive_bp.unsqueeze(-1);
        let loss_box = (-(iou_bp.square() - 1.0) * positive_bp).sum(None) * BOX_WEIGHT;
        let loss_obj = bce_with_logits(predicted.quality(), positive_bp).sum(None);
        let invalid = predicted.nan_if_invalid();
        let by_count = || Normaliser::at_least_one(positive_bp.sum(None));
        let term = |name, sum, needs_positives| Term { name, sum, by: by_count(), needs_positives };
        vec![
            term("loss_cls", loss_cls.sum(None), true),
            term("loss_bbox", loss_box, true),
            term("loss_obj", loss_obj + invalid, false),
        ]
    }
}

impl SimplifiedTransport {
    /// Assigns the points of all images at once.
    fn assign(&self, p: &Predictions, t: &PointTensors) -> Assigned {
        let size = p.cls.size();
        let (batch, num_points, num_gt) = (size[0], size[1], t.labels.size()[0]);
        let (kind, device) = (p.cls.kind(), p.cls.device());
        if num_gt == 0 {
            let gt = Tensor::zeros([batch, num_points], (Kind::Int64, device));
            let positive = gt.zeros_like().to_kind(kind);
            return Assigned { gt, positive };
        }
        let iou_gp = matrix::iou(&p.distances, &p.grid, &t.boxes, &t.image, AREA_EPS);
        let (both_gp, any_bp) = self.regions(p, t, batch);
        let candidate_gp = any_bp.index_select(0, &t.image);
        let not_both_gp = both_gp.logical_not().to_kind(kind);
        let cost_gp =
            class_costs(p, t) - (&iou_gp + TINY).log() * COST_BOX_WEIGHT + not_both_gp * OUTSIDE;
        let cost_gp = cost_gp.where_scalarother(&candidate_gp, NEVER);

        let topk = (self.config.topk as i64).min(num_points);
        let candidate_iou_gp = iou_gp * candidate_gp.to_kind(kind);
        let (best_gk, _) = candidate_iou_gp.topk(topk, 1, true, false);
        let number_g1 = best_gk.sum_dim_intlist(1, true, None).floor().clamp_min(1.0);
        let (cheapest_gk, point_gk) = cost_gp.topk(topk, 1, false, true);
        let position_k = Tensor::arange(topk, (kind, device));
        let takes_gk =
            position_k.lt_tensor(&number_g1).logical_and(&cheapest_gk.lt(NEVER)).to_kind(kind);
        let row_gk = point_gk + t.image.unsqueeze(1) * num_points;
        let wanted = Tensor::zeros([batch * num_points], (kind, device))
            .index_add(0, &row_gk.view([-1]), &takes_gk.view([-1]))
            .view([batch, num_points]);

        // A point that one box takes is assigned to that box. A point that several boxes take is
        // assigned to the box of lowest cost, which can also be one that did not take it.
        let gt_gk = Tensor::arange(num_gt, (Kind::Int64, device)).unsqueeze(1).expand_as(&row_gk);
        let taken_by = Tensor::zeros([batch * num_points], (Kind::Int64, device))
            .index_add(
                0,
                &row_gk.view([-1]),
                &(gt_gk * takes_gk.to_kind(Kind::Int64)).reshape([-1]),
            )
            .view([batch, num_points]);
        let least_bp = cheapest_box(&cost_gp, &t.image, batch);
        let gt = least_bp.where_self(&wanted.gt(1.0), &taken_by);
        let gt = gt.clamp(0, num_gt - 1);
        Assigned { gt, positive: wanted.gt(0.0).to_kind(kind) }
    }

    /// Whether each point is inside each box and near its centre `[G, P]`, and whether it is inside
    /// or near any box of its image `[B, P]`.
    fn regions(&self, p: &Predictions, t: &PointTensors, batch: i64) -> (Tensor, Tensor) {
        let (kind, device) = (p.cls.kind(), p.cls.device());
        let is_near = matrix::is_near(&p.grid, &t.boxes, self.config.radius);
        let is_inside = matrix::is_inside(&p.grid, &t.boxes, 0.0);
        let either_gp = is_near.logical_or(&is_inside).to_kind(kind);
        let any_bp = Tensor::zeros([batch, either_gp.size()[1]], (kind, device))
            .index_add(0, &t.image, &either_gp)
            .gt(0.0);
        (is_near.logical_and(&is_inside), any_bp)
    }
}

/// The box of lowest cost for each point `[B, P]`, the first one on a tie; meaningless for images
/// without boxes.
fn cheapest_box(cost_gp: &Tensor, image_g: &Tensor, batch: i64) -> Tensor {
    transport::largest_supplier(&-cost_gp, image_g, batch)
}

/// Binary cross entropy of each point's class probabilities with the class of each box, summed over
/// the classes, `[G, P]`. A probability is the square root of class probability times objectness.
fn class_costs(p: &Predictions, t: &PointTensors) -> Tensor {
    let score_bpc = p.cls.sigmoid() * p.quality().sigmoid().unsqueeze(-1);
    let p_bpc = score_bpc.sqrt();
    let as_negative = -(-&p_bpc).log1p().clamp_min(LOG_FLOOR);
    let as_positive = -p_bpc.log().clamp_min(LOG_FLOOR);
    let background_bp = as_negative.sum_dim_intlist(2, false, None);
    let change_gp = matrix::of_class(&(as_positive - as_negative), t);
    background_bp.index_select(0, &t.image) + change_gp
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assign::{ImageBoxes, Matcher};
    use crate::geometry::{Grid, level_sizes};
    use crate::model::ClassOutput;
    use tch::Device;

    /// No prediction overlaps a box: every box still gets one point, and of boxes that want the
    /// same point only the first one gets it.
    #[test]
    fn every_box_gets_a_point_without_any_overlap() {
        let options = (Kind::Double, Device::Cpu);
        let grid = Grid::centers(&level_sizes(128, 128));
        let zeros = |channels: i64| Tensor::zeros([2, grid.num_points(), channels], options);
        let p = Predictions {
            cls: zeros(3),
            cls_is: ClassOutput::Logit,
            distances: zeros(4),
            quality: Some(zeros(1).squeeze_dim(-1)),
            first: None,
            bins: None,
            grid: grid.clone(),
        };
        let boxes = vec![[10.0, 10.0, 40.0, 50.0], [70.0, 60.0, 120.0, 100.0]];
        let images = [
            ImageBoxes { boxes: boxes.clone(), labels: vec![0, 2], padded: None },
            ImageBoxes { boxes: vec![boxes[0]; 2], labels: vec![1, 1], padded: None },
        ];
        let targets = BoxesOnly { offset: 0.5 }.targets(&grid, &images).to(options.0, options.1);
        let criterion = SimplifiedTransport { config: SimotaConfig::default() };
        let assigned = criterion.assign(&p, targets.points());
        let count: Vec<f64> = assigned.positive.sum_dim_intlist(1, false, None).try_into().unwrap();
        assert_eq!(count, [2.0, 1.0]);
        let gt = assigned.gt.masked_select(&assigned.positive.gt(0.0));
        let mut gt = Vec::<i64>::try_from(gt).unwrap();
        gt.sort_unstable();
        assert_eq!(gt, [0, 1, 2]);
    }
}
