//! Quantities of every box of a batch with every point of its image, as matrices `[G, P]`: one
//! tensor operation for all boxes and images.
//!
//! Shapes: B images, P points over all levels, C classes, G boxes.

use tch::Tensor;

use super::PointTensors;
use crate::geometry::{Grid, iou_and_giou_of_any};

/// Distances (l, t, r, b) from all points to the sides of the boxes `boxes_g4`, `[4, G, P]`,
/// pixels; negative for a side that the point lies beyond.
pub fn box_distances(grid: &Grid, boxes_g4: &Tensor) -> Tensor {
    let points_2p = grid.points(boxes_g4.kind(), boxes_g4.device()).tr().unsqueeze(1);
    let boxes_4g1 = boxes_g4.tr().unsqueeze(2);
    let low = &points_2p - boxes_4g1.narrow(0, 0, 2);
    let high = boxes_4g1.narrow(0, 2, 2) - points_2p;
    Tensor::cat(&[low, high], 0)
}

/// IoU `[G, P]` of each box, given by [`box_distances`], with the predicted boxes of its image,
/// given by their distances `ltrb_bp4`. `image_g` is the image of each box. Areas used as
/// denominators are at least `eps` square pixels.
pub fn iou(ltrb_bp4: &Tensor, distances_4gp: &Tensor, image_g: &Tensor, eps: f64) -> Tensor {
    let found_4gp = ltrb_bp4.permute([2, 0, 1]).index_select(1, image_g);
    let flat = |t: &Tensor| t.reshape([4, -1]);
    let size = distances_4gp.size();
    let (iou, _) = iou_and_giou_of_any(&flat(&found_4gp), &flat(distances_4gp), eps);
    iou.view([size[1], size[2]])
}

/// Value in `values_bpc` `[B, P, C]` of the class of each box at each point of its image, `[G, P]`.
pub fn of_class(values_bpc: &Tensor, t: &PointTensors) -> Tensor {
    let (num_points, classes) = (values_bpc.size()[1], values_bpc.size()[2]);
    let class_g = &t.image * classes + &t.labels;
    values_bpc.transpose(1, 2).reshape([-1, num_points]).index_select(0, &class_g)
}

/// Whether each point is within `radius` strides of the centre of each box along both axes,
/// `[G, P]`.
pub fn is_near(grid: &Grid, boxes_g4: &Tensor, radius: f64) -> Tensor {
    let (kind, device) = (boxes_g4.kind(), boxes_g4.device());
    let center_g2 = (boxes_g4.narrow(1, 0, 2) + boxes_g4.narrow(1, 2, 2)) / 2.0;
    let points_p2 = grid.points(kind, device);
    let apart_gp = (points_p2.unsqueeze(0) - center_g2.unsqueeze(1)).abs().amax([-1], false);
    apart_gp.lt_tensor(&(grid.strides(kind, device) * radius))
}
