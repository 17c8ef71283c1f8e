//! FCOS (Tian et al., ICCV 2019): each point learns from the smallest box around it whose size fits the point's level.
//!
//! Two forms: the improved one (centre sampling, GIoU loss), and the plain one of the paper (IoU loss).

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::assign::points::{PointTargets, PointTensors};
use crate::assign::{Criterion, ImageBoxes, Matcher, Probe, Progress, Strategy, Targets};
use crate::boxes::{Grid, STRIDES, iou_and_giou};
use crate::loss::functions::{bce_with_logits, focal};
use crate::loss::{Normaliser, Term};
use crate::model::{Predictions, Rank};

/// Settings of FCOS.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FcosConfig {
    /// Which of the two forms.
    pub form: Form,
    /// Half the side of the square around a box's centre whose points may be positive, in strides (improved form).
    pub radius: f64,
}

/// The two forms of FCOS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Centre sampling and GIoU loss.
    Improved,
    /// All points inside a box, and IoU loss.
    Plain,
}

impl Default for FcosConfig {
    fn default() -> Self {
        Self { form: Form::Improved, radius: 1.5 }
    }
}

/// Largest distance (l, t, r, b) that points of each level learn, pixels; the level before has the smaller ones.
const LARGEST: [f32; 5] = [64.0, 128.0, 256.0, 512.0, 1e8];
const FOCAL_ALPHA: f64 = 0.25;
const FOCAL_GAMMA: f64 = 2.0;
/// Floor of areas in denominators, and of the IoU in its logarithm.
const EPS: f64 = 1e-6;
/// mmdetection adds the f32 epsilon to what it divides by.
const F32_EPSILON: f64 = f32::EPSILON as f64;

impl FcosConfig {
    pub(crate) fn check(&self) -> Result<(), String> {
        let ok = self.radius > 0.0 && self.radius <= 1000.0;
        if ok { Ok(()) } else { Err(format!("`assign.radius`: expected a number above 0 and at most 1000 strides; found {}", self.radius)) }
    }

    pub(crate) fn summary(&self) -> String {
        match self.form {
            Form::Improved => format!("FCOS, centre sampling within {} strides, GIoU loss", self.radius),
            Form::Plain => "FCOS, plain form: all points inside a box, IoU loss".into(),
        }
    }

    pub(crate) fn build(&self, classes: i64) -> Strategy {
        let matcher = Arc::new(SmallestBox { config: self.clone() });
        Strategy { matcher, criterion: Box::new(CenterNess { form: self.form, classes }), rank: Rank::Class }
    }

    /// The targets of a batch.
    pub fn targets(&self, grid: &Grid, images: &[ImageBoxes]) -> PointTargets {
        let mut out = PointTargets::default();
        for (i, image) in images.iter().enumerate() {
            let first = out.boxes.len() as i64;
            let mut point = i as i64 * grid.num_points();
            for (level, &(h, w)) in grid.sizes.iter().enumerate() {
                for row in 0..h {
                    for col in 0..w {
                        if let Some(gt) = self.box_of(grid, level, (col, row), image) {
                            out.positive.push(point);
                            out.gt.push(first + gt as i64);
                        }
                        point += 1;
                    }
                }
            }
            out.boxes.extend(&image.boxes);
            out.labels.extend(&image.labels);
        }
        out
    }

    /// The box that the point at (column, row) of a level learns from: the smallest candidate, the first of equals.
    fn box_of(&self, grid: &Grid, level: usize, (col, row): (i64, i64), image: &ImageBoxes) -> Option<usize> {
        let stride = STRIDES[level] as f32;
        let at = |i: i64| (i as f32 + grid.offset as f32) * stride;
        let (x, y) = (at(col), at(row));
        let smallest = if level == 0 { -1.0 } else { LARGEST[level - 1] };
        let mut best: Option<(f32, usize)> = None;
        for (n, &[x1, y1, x2, y2]) in image.boxes.iter().enumerate() {
            let largest = (x - x1).max(y - y1).max(x2 - x).max(y2 - y);
            if !(smallest..=LARGEST[level]).contains(&largest) {
                continue;
            }
            let inside = match self.form {
                Form::Plain => (x - x1).min(y - y1).min(x2 - x).min(y2 - y) > 0.0,
                Form::Improved => {
                    let reach = self.radius as f32 * stride;
                    let (cx, cy) = (f32::midpoint(x1, x2), f32::midpoint(y1, y2));
                    let (left, top) = ((cx - reach).max(x1), (cy - reach).max(y1));
                    let (right, bottom) = ((cx + reach).min(x2), (cy + reach).min(y2));
                    (x - left).min(y - top).min(right - x).min(bottom - y) > 0.0
                }
            };
            let area = (x2 - x1) * (y2 - y1);
            if inside && best.is_none_or(|b| area < b.0) {
                best = Some((area, n));
            }
        }
        best.map(|b| b.1)
    }
}

/// Finds the box of each point.
struct SmallestBox {
    config: FcosConfig,
}

impl Matcher for SmallestBox {
    fn targets(&self, grid: &Grid, images: &[ImageBoxes]) -> Targets {
        Targets::Points(self.config.targets(grid, images).tensors())
    }
}

/// Focal loss over all points, box loss of the positive ones weighted by their centre-ness, and centre-ness itself.
struct CenterNess {
    form: Form,
    classes: i64,
}

impl Criterion for CenterNess {
    /// The probe sees `label`, the class of each point `[B, P]`, C for background.
    fn terms(&self, predicted: &Predictions, targets: &Targets, _: &Progress, probe: &mut dyn Probe) -> Vec<Term> {
        let t = targets.points();
        let cls = &predicted.cls;
        let rows = cls.size()[0] * cls.size()[1];
        let labels = t.labels.index_select(0, &t.gt);
        let index = &t.positive * self.classes + &labels;
        let one_hot = Tensor::zeros([rows * self.classes], (cls.kind(), cls.device())).index_fill_(0, &index, 1.0);
        let loss_cls = focal(cls, &one_hot.view_as(cls), FOCAL_ALPHA, FOCAL_GAMMA).sum(None);
        let mut label = Tensor::full([rows], self.classes, (Kind::Int64, cls.device()));
        probe.see("label", &label.index_copy_(0, &t.positive, &labels));

        let target = distances(t, &predicted.grid);
        let found = predicted.distances.reshape([-1, 4]).index_select(0, &t.positive).tr();
        let center = centerness(&target);
        let (iou, giou) = iou_and_giou(&found, &target, EPS);
        let box_loss = match self.form {
            Form::Improved => -(giou - 1.0),
            Form::Plain => -iou.clamp_min(EPS).log(),
        };
        let loss_bbox = (box_loss * &center).sum(None);
        let quality = predicted.quality.reshape([-1]).index_select(0, &t.positive);
        let loss_center = bce_with_logits(&quality, &center).sum(None);

        let count = Tensor::ones_like(&center).sum(None);
        let by_count = || Normaliser { value: count.shallow_clone(), floor: 1.0, plus: F32_EPSILON };
        let by_center = Normaliser { value: center.sum(None), floor: EPS, plus: F32_EPSILON };
        vec![
            Term { name: "loss_cls", sum: loss_cls, by: by_count(), needs_positives: false },
            Term { name: "loss_bbox", sum: loss_bbox, by: by_center, needs_positives: true },
            Term { name: "loss_centerness", sum: loss_center, by: by_count(), needs_positives: true },
        ]
    }
}

/// Distances (l, t, r, b) of each positive point from its box's sides, `[4, N]`, pixels.
fn distances(t: &PointTensors, grid: &Grid) -> Tensor {
    let points = grid.points(t.boxes.kind(), t.boxes.device());
    let xy = points.index_select(0, &t.positive.remainder(grid.num_points())).tr();
    let boxes = t.boxes.index_select(0, &t.gt).tr();
    let (low, high) = (&xy - boxes.narrow(0, 0, 2), boxes.narrow(0, 2, 2) - &xy);
    Tensor::cat(&[low, high], 0)
}

/// `sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b))` of distances `[4, N]`: 1 at the centre of a box, 0 at its sides.
fn centerness(d: &Tensor) -> Tensor {
    let (l, t, r, b) = (d.get(0), d.get(1), d.get(2), d.get(3));
    ((l.minimum(&r) / l.maximum(&r)) * (t.minimum(&b) / t.maximum(&b))).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boxes::level_sizes;

    #[test]
    fn a_point_learns_the_smallest_box_that_fits_its_level() {
        let grid = Grid::centers(&level_sizes(128, 128));
        let image = |boxes: &[[f32; 4]]| [ImageBoxes { boxes: boxes.to_vec(), labels: vec![0; boxes.len()] }];
        let plain = FcosConfig { form: Form::Plain, ..FcosConfig::default() };
        // Points of stride 8 at 4, 12, ...: a box from 4 to 20 holds 12 only, strictly inside; too small for other levels.
        let t = plain.targets(&grid, &image(&[[4.0, 4.0, 20.0, 20.0], [8.0, 8.0, 16.0, 16.0], [8.0, 8.0, 16.0, 16.0]]));
        assert_eq!((t.positive, t.gt), (vec![16 + 1], vec![1]), "the smaller, and the first of two equal ones");
        // A side of 128 at its centre: 64 still belongs to the first level, more to the second.
        let large = image(&[[0.0, 0.0, 128.0, 128.0]]);
        let t = FcosConfig::default().targets(&grid, &large);
        assert!(t.positive.iter().all(|p| *p >= 256), "the nearest points of stride 8 are 68 from the far side");
        let stride_16: Vec<i64> = t.positive.iter().copied().filter(|p| (256..320).contains(p)).collect();
        assert_eq!(stride_16.len(), 4, "within 1.5 strides of the centre, up to the side of the square: {stride_16:?}");
    }

    #[test]
    fn centerness_by_hand() {
        let d = Tensor::from_slice(&[1.0f64, 4.0, 2.0, 2.0, 4.0, 4.0, 2.0, 2.0]).view([4, 2]);
        let found: Vec<f64> = centerness(&d).try_into().unwrap();
        assert_eq!(found, [0.5, 1.0]);
    }
}
