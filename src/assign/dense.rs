//! Assignments that are computed from the predictions at all points, on the device: at most one box
//! per point.
//!
//! Shapes: B images, P points over all levels, C classes, G boxes.

use tch::{Kind, Tensor};

use super::{ImageBoxes, Matcher, PointTargets, PointTensors, Targets};
use crate::geometry::{Grid, iou_and_giou};
use crate::model::Predictions;

/// A matcher that leaves the assignment to the criterion: its targets are the boxes.
#[derive(Debug)]
pub struct BoxesOnly {
    /// Position of the points in their cells, see [`Grid::offset`].
    pub offset: f64,
}

impl Matcher for BoxesOnly {
    fn offset(&self) -> f64 {
        self.offset
    }

    fn targets(&self, _: &Grid, images: &[ImageBoxes]) -> Targets {
        let mut out = PointTargets::default();
        for (i, image) in images.iter().enumerate() {
            out.add_boxes(i, image);
        }
        Targets::Points(out.tensors())
    }
}

/// Checks `assign.radius` (strides) and `assign.topk` (points).
pub(super) fn check(radius: f64, topk: usize) -> Result<(), String> {
    if !(radius > 0.0 && radius <= 1000.0) {
        return Err(format!(
            "`assign.radius`: expected a number above 0 and at most 1000 strides; found {radius}"
        ));
    }
    match topk {
        1..=1000 => Ok(()),
        k => Err(format!("`assign.topk`: expected 1 to 1000 points; found {k}")),
    }
}

/// The box of each point.
#[derive(Debug)]
pub struct Assigned {
    /// The box of each point `[B, P]`, `0..G`; arbitrary for points without a box.
    pub gt: Tensor,
    /// 1 for a point that has a box, else 0, `[B, P]`.
    pub positive: Tensor,
}

impl Assigned {
    /// `value_bp` `[B, P]` at the class of each positive point, 0 elsewhere, `[B, P, C]`.
    pub fn class_targets(&self, t: &PointTensors, classes: i64, value_bp: &Tensor) -> Tensor {
        let size = self.gt.size();
        let zeros =
            Tensor::zeros([size[0], size[1], classes], (value_bp.kind(), value_bp.device()));
        if t.labels.numel() == 0 {
            return zeros;
        }
        let label_bp = t.labels.index_select(0, &self.gt.view([-1])).view_as(&self.gt);
        let value_bp1 = (value_bp * &self.positive).unsqueeze(-1);
        zeros.scatter(-1, &label_bp.unsqueeze(-1), &value_bp1)
    }

    /// IoU and GIoU `[B, P]` of the predicted box and the ground-truth box of each point. Areas
    /// used as denominators are at least `eps` square pixels. Both are 0 if the batch has no boxes.
    pub fn iou_and_giou(&self, p: &Predictions, t: &PointTensors, eps: f64) -> (Tensor, Tensor) {
        let size = self.gt.size();
        let found_4n = p.distances.reshape([-1, 4]).tr();
        if t.labels.numel() == 0 {
            let zero = (found_4n.sum_dim_intlist(0, false, None) * 0.0).view(&size[..]);
            return (zero.shallow_clone(), zero);
        }
        let boxes_bp4 = t.boxes.index_select(0, &self.gt.view([-1])).view([size[0], size[1], 4]);
        let points_p2 = p.grid.points(t.boxes.kind(), t.boxes.device());
        let target_4n = crate::geometry::encode(&points_p2, &boxes_bp4).view([-1, 4]).tr();
        let (iou, giou) = iou_and_giou(&found_4n, &target_4n, eps);
        (iou.view(&size[..]), giou.view(&size[..]))
    }

    /// Class of each point `[B, P]`, `classes` for background.
    pub fn labels(&self, t: &PointTensors, classes: i64) -> Tensor {
        if t.labels.numel() == 0 {
            return Tensor::full(self.gt.size(), classes, (Kind::Int64, self.gt.device()));
        }
        let label_bp = t.labels.index_select(0, &self.gt.view([-1])).view_as(&self.gt);
        label_bp.where_scalarother(&self.positive.gt(0.0), classes)
    }
}
