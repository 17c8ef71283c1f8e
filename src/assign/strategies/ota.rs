//! OTA (Ge et al., CVPR 2021): the assignment of points to boxes as an optimal transport problem.
//!
//! Shapes: B images, P points over all levels, C classes, G boxes, R = G + B suppliers: the boxes,
//! then the background of each image.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::assign::dense::{self, Assigned, BoxesOnly};
use crate::assign::{
    Criterion, PointTensors, Probe, Progress, Strategy, StrategyConfig, Targets, matrix, transport,
};
use crate::loss::functions::{bce_with_logits, focal};
use crate::loss::{Normaliser, Term};
use crate::model::{Distances, ModelConfig, Params, Predictions, Rank, Tower};

/// `[assign]` with `kind = "ota"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtaConfig {
    /// Half the side of the square around a box's centre outside which points have an extra cost,
    /// strides.
    pub radius: f64,
    /// Number of the largest IoUs of a box whose sum, rounded down, is its supply.
    pub topk: usize,
}

impl Default for OtaConfig {
    fn default() -> Self {
        Self { radius: 2.5, topk: 20 }
    }
}

const FOCAL_ALPHA: f64 = 0.25;
const FOCAL_GAMMA: f64 = 2.0;
/// Weight of the box loss in the cost, and weights of the terms.
const COST_BOX_WEIGHT: f64 = 1.5;
const BOX_WEIGHT: f64 = 2.0;
const IOU_WEIGHT: f64 = 0.5;
/// Added to the cost of a point outside the box or the square around its centre.
const OUTSIDE: f64 = 1e6;
/// A point inside a box is farther than this from its sides, pixels.
const MARGIN: f64 = 0.01;
/// Lower bound of areas used as denominators, and of the IoU before its logarithm is taken
/// (cvpods).
const EPS: f64 = f32::EPSILON as f64;

impl StrategyConfig for OtaConfig {
    fn kind(&self) -> &'static str {
        "ota"
    }

    fn check(&self) -> Result<(), String> {
        dense::check(self.radius, self.topk)
    }

    fn caution(&self, model: &ModelConfig) -> Option<String> {
        model.unlike("OTA", Distances::Relu, Tower::Reg, true)
    }

    fn summary(&self) -> String {
        let Self { radius, topk } = self;
        format!("OTA, radius {radius} strides, supply from the {topk} best IoUs")
    }

    fn build(&self, _: &mut Params, _: i64) -> Strategy {
        Strategy {
            matcher: Arc::new(BoxesOnly { offset: 0.0 }),
            criterion: Box::new(Transport { config: self.clone() }),
            inference: Rank::Root.into(),
        }
    }
}

/// Focal loss over all points; box loss and loss of the predicted IoU over the positive ones.
struct Transport {
    config: OtaConfig,
}

impl Criterion for Transport {
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
        let one_hot = assigned.class_targets(t, classes, positive_bp);
        let loss_cls = focal(cls_bpc, &one_hot, FOCAL_ALPHA, FOCAL_GAMMA).sum(None)
            + predicted.nan_if_invalid();
        let (iou_bp, giou_bp) = assigned.iou_and_giou(predicted, t, EPS);
        let loss_box = (-(giou_bp - 1.0) * positive_bp).sum(None) * BOX_WEIGHT;
        let loss_iou = bce_with_logits(predicted.quality(), &iou_bp.detach());
        let loss_iou = (loss_iou * positive_bp).sum(None) * IOU_WEIGHT;
        let by_count = || Normaliser::at_least_one(positive_bp.sum(None));
        let term = |name, sum, needs_positives| Term { name, sum, by: by_count(), needs_positives };
        vec![
            term("loss_cls", loss_cls, false),
            term("loss_box_reg", loss_box, true),
            term("loss_iou", loss_iou, true),
        ]
    }
}

impl Transport {
    /// Assigns the points of all images at once.
    fn assign(&self, p: &Predictions, t: &PointTensors) -> Assigned {
        let size = p.cls.size();
        let (batch, num_points, num_gt) = (size[0], size[1], t.labels.size()[0]);
        let (kind, device) = (p.cls.kind(), p.cls.device());
        let found = p.distances.clamp_min(0.0);
        let iou_gp = matrix::iou(&found, &p.grid, &t.boxes, &t.image, EPS);
        let is_inside_gp = matrix::is_inside(&p.grid, &t.boxes, MARGIN);
        let is_near_gp = matrix::is_near(&p.grid, &t.boxes, self.config.radius);
        let near_gp = is_inside_gp.logical_and(&is_near_gp).to_kind(kind);
        let (class_cost_gp, background_bp) = class_costs(p, t);
        let outside_gp = -&near_gp + 1.0;
        let cost_gp =
            class_cost_gp + iou_gp.clamp_min(EPS).log() * -COST_BOX_WEIGHT + outside_gp * OUTSIDE;

        let topk = (self.config.topk as i64).min(num_points);
        let (best_gk, _) = (iou_gp * near_gp).topk(topk, 1, true, false);
        let supply_g = best_gk.sum_dim_intlist(1, false, None).trunc().clamp_min(1.0);
        // The boxes of a crowded image can supply more points than it has, and then the problem has
        // no solution. Their supplies are scaled down by a common factor that leaves one point for
        // the background.
        let zeros_b = Tensor::zeros([batch], (kind, device));
        let total_b = zeros_b.index_add(0, &t.image, &supply_g);
        let share_b =
            (total_b.clamp_min(1.0).reciprocal() * (num_points - 1) as f64).clamp_max(1.0);
        let supply_g = supply_g * share_b.index_select(0, &t.image);
        let rest_b = -(total_b * share_b) + num_points as f64;
        let supply_r = Tensor::cat(&[supply_g, rest_b], 0);
        let images = Tensor::arange(batch, (Kind::Int64, device));
        let image_r = Tensor::cat(&[&t.image, &images], 0);
        let cost_rp = Tensor::cat(&[cost_gp, background_bp], 0);

        let plan_rp = transport::log_plan(&cost_rp, &supply_r, &image_r, batch).exp();
        let plan_rp = &plan_rp / plan_rp.amax([1], true);
        let supplier_bp = transport::largest_supplier(&plan_rp, &image_r, batch);
        let positive = supplier_bp.lt(num_gt).to_kind(kind);
        Assigned { gt: supplier_bp.clamp_max((num_gt - 1).max(0)), positive }
    }
}

/// Focal loss of each point, summed over the classes: with the class of each box as its target
/// `[G, P]`, and with background as its target `[B, P]`.
fn class_costs(p: &Predictions, t: &PointTensors) -> (Tensor, Tensor) {
    let as_negative = focal(&p.cls, &p.cls.zeros_like(), FOCAL_ALPHA, FOCAL_GAMMA);
    let as_positive = focal(&p.cls, &p.cls.ones_like(), FOCAL_ALPHA, FOCAL_GAMMA);
    let background_bp = as_negative.sum_dim_intlist(2, false, None);
    let change_gp = matrix::of_class(&(as_positive - as_negative), t);
    (background_bp.index_select(0, &t.image) + change_gp, background_bp)
}
