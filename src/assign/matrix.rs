//! Quantities of every box of a batch with every point of its image, as matrices `[G, P]`: one
//! tensor operation for all boxes and images.
//!
//! Shapes: B images, P points over all levels, C classes, G boxes.

use tch::Tensor;

use super::PointTensors;
use crate::geometry::{self, Grid};

/// IoU `[G, P]` of each box with the predicted boxes of its image, given by their distances
/// `ltrb_bp4`. `image_g` is the image of each box. Areas used as denominators are at least `eps`
/// square pixels. Without gradient.
///
/// The matrix has millions of entries, and each pass over it takes milliseconds on a CPU, so the
/// sides are compared one by one, in place.
pub fn iou(
    ltrb_bp4: &Tensor,
    grid: &Grid,
    boxes_g4: &Tensor,
    image_g: &Tensor,
    eps: f64,
) -> Tensor {
    let points_p2 = grid.points(ltrb_bp4.kind(), ltrb_bp4.device());
    let found_bp4 = geometry::decode(&points_p2, ltrb_bp4);
    let found_bp = |side| found_bp4.select(-1, side);
    let found_gp = |side| found_bp(side).index_select(0, image_g);
    let truth_g1 = |side| boxes_g4.narrow(1, side, 1);
    let overlap_gp = |low, high| {
        let left = found_gp(low).clamp_min_tensor_(&truth_g1(low));
        let mut right = found_gp(high).clamp_max_tensor_(&truth_g1(high));
        right.g_sub_(&left).clamp_min_(0.0)
    };
    let (found_area_bp, truth_area_g1) = (
        (found_bp(2) - found_bp(0)) * (found_bp(3) - found_bp(1)),
        (truth_g1(2) - truth_g1(0)) * (truth_g1(3) - truth_g1(1)),
    );
    let overlap_gp = overlap_gp(0, 2).g_mul_(&overlap_gp(1, 3));
    let mut union_gp = found_area_bp.index_select(0, image_g).g_add_(&truth_area_g1);
    let union_gp = union_gp.g_sub_(&overlap_gp).clamp_min_(eps);
    overlap_gp / union_gp
}

/// Whether each point is inside each box, more than `margin` pixels from its sides, `[G, P]`.
pub fn is_inside(grid: &Grid, boxes_g4: &Tensor, margin: f64) -> Tensor {
    let points_2p = grid.points(boxes_g4.kind(), boxes_g4.device()).tr();
    let side_g1 = |side| boxes_g4.narrow(1, side, 1);
    let [x, y] = [0, 1].map(|axis| {
        let points_1p = points_2p.narrow(0, axis, 1);
        let above = points_1p.gt_tensor(&(side_g1(axis) + margin));
        above.logical_and(&points_1p.lt_tensor(&(side_g1(axis + 2) - margin)))
    });
    x.logical_and(&y)
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

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::geometry::{encode, iou_and_giou, level_sizes};

    /// Compares with the pairwise IoU that the losses use, and with the definition of being inside.
    #[test]
    fn matrices_are_those_of_the_pairs() {
        tch::manual_seed(8);
        let options = (Kind::Double, Device::Cpu);
        let grid = Grid::centers(&level_sizes(64, 96));
        let ltrb_bp4 = Tensor::rand([2, grid.num_points(), 4], options) * 60.0 - 10.0;
        let boxes = [3.0, 5.0, 40.0, 30.0, 20.0, 10.0, 90.0, 60.0, -9.0, -9.0, -1.0, -1.0];
        let boxes_g4 = Tensor::from_slice(&boxes).view([3, 4]);
        let image_g = Tensor::from_slice(&[1i64, 0, 1]);
        let iou_gp = iou(&ltrb_bp4, &grid, &boxes_g4, &image_g, 1e-6);
        let inside_gp = is_inside(&grid, &boxes_g4, 0.5);
        let points = grid.points(options.0, options.1);
        for g in 0..3 {
            let target = encode(&points, &boxes_g4.get(g)).tr();
            let found = ltrb_bp4.get(image_g.int64_value(&[g])).tr();
            let (expected, _) = iou_and_giou(&found, &target, 1e-6);
            // Predictions with swapped sides (a negative width or height) have no area to compare.
            let size = found.view([2, 2, -1]).sum_dim_intlist(0, false, None);
            let is_box = size.amin([0], false).gt(0.0);
            let difference = (iou_gp.get(g) - expected).masked_select(&is_box).abs().max();
            assert!(difference.double_value(&[]) < 1e-12);
            assert_eq!(inside_gp.get(g), target.amin([0], false).gt(0.5));
        }
    }
}
