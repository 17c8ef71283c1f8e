//! Optimal transport with entropy regularisation (Sinkhorn and Knopp; Cuturi, NeurIPS 2013) of many
//! images at once, in the log domain.
//!
//! Shapes: B images, P points over all levels, R suppliers of all images.

use tch::{Kind, Tensor};

/// Strength of the regularisation.
const GAMMA: f64 = 0.1;
/// Number of iterations.
const ROUNDS: usize = 50;
/// Added to supply and demand before their logarithm is taken.
const TINY: f64 = 1e-8;

/// Logarithm of the transport plan `[R, P]` from the suppliers, with supplies `supply_r` `[R]`, to
/// the points of their image, each of which demands 1, at the costs `cost_rp` `[R, P]`. `image_r`
/// is the image of each supplier, of `batch` images. Follows OTA's implementation: 50 iterations,
/// potentials that start at 1.
pub fn log_plan(cost_rp: &Tensor, supply_r: &Tensor, image_r: &Tensor, batch: i64) -> Tensor {
    let num_points = cost_rp.size()[1];
    let options = (cost_rp.kind(), cost_rp.device());
    let image_rp = image_r.unsqueeze(1).expand_as(cost_rp);
    let log_supply_r1 = (supply_r + TINY).log().unsqueeze(1);
    let mut of_supplier_r1 = log_supply_r1.ones_like();
    let mut of_point_bp = Tensor::ones([batch, num_points], options);
    let plan = |of_supplier_r1: &Tensor, of_point_bp: &Tensor| {
        (of_supplier_r1 + of_point_bp.index_select(0, image_r) - cost_rp) / GAMMA
    };
    for _ in 0..ROUNDS {
        let plan_rp = plan(&of_supplier_r1, &of_point_bp);
        let arrives_bp = logsumexp_per_image(&plan_rp, &image_rp, image_r, batch);
        of_point_bp = (-arrives_bp + TINY.ln_1p()) * GAMMA + of_point_bp;
        let plan_rp = plan(&of_supplier_r1, &of_point_bp);
        of_supplier_r1 =
            (&log_supply_r1 - plan_rp.logsumexp([1i64], true)) * GAMMA + of_supplier_r1;
    }
    plan(&of_supplier_r1, &of_point_bp)
}

/// Logarithm of the sum of exponentials over the suppliers of each image `[B, P]`.
fn logsumexp_per_image(
    plan_rp: &Tensor,
    image_rp: &Tensor,
    image_r: &Tensor,
    batch: i64,
) -> Tensor {
    let shape = [batch, plan_rp.size()[1]];
    let options = (plan_rp.kind(), plan_rp.device());
    let largest_bp = Tensor::full(shape, f64::NEG_INFINITY, options)
        .internal_scatter_reduce(0, image_rp, plan_rp, "amax", true);
    let share_rp = (plan_rp - largest_bp.index_select(0, image_r)).exp();
    Tensor::zeros(shape, options).index_add(0, image_r, &share_rp).log() + largest_bp
}

/// The supplier of each point `[B, P]`, an index in `0..R`: of the suppliers of its image the one
/// with the largest value in `value_rp`, the first one on a tie. The result is meaningless for
/// images without a supplier.
pub fn largest_supplier(value_rp: &Tensor, image_r: &Tensor, batch: i64) -> Tensor {
    let shape = [batch, value_rp.size()[1]];
    let options = (value_rp.kind(), value_rp.device());
    let image_rp = image_r.unsqueeze(1).expand_as(value_rp);
    let largest_bp = Tensor::full(shape, f64::NEG_INFINITY, options)
        .internal_scatter_reduce(0, &image_rp, value_rp, "amax", true);
    let is_largest = value_rp.eq_tensor(&largest_bp.index_select(0, image_r));
    let none = value_rp.size()[0];
    let index_rp = Tensor::arange(none, (Kind::Int64, value_rp.device()))
        .unsqueeze(1)
        .where_scalarother(&is_largest, none);
    // With NaN among the values (predictions that are not finite) no supplier is the largest, and
    // the index is clamped to the last supplier.
    Tensor::full(shape, none, (Kind::Int64, value_rp.device()))
        .internal_scatter_reduce(0, &image_rp, &index_rp, "amin", true)
        .clamp_max(none - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// Two suppliers of three points each have a nearest point of their own; a third image has one
    /// supplier.
    #[test]
    fn supply_goes_to_the_cheapest_points() {
        let cost = Tensor::from_slice(&[
            0.0, 2.0, 2.0, //
            2.0, 0.0, 2.0, //
            1.0, 1.0, 0.0, //
            5.0, 5.0, 5.0,
        ])
        .view([4, 3]);
        let image = Tensor::from_slice(&[0i64, 0, 0, 1]);
        let supply = Tensor::from_slice(&[1.0, 1.0, 1.0, 3.0]);
        let plan = log_plan(&cost, &supply, &image, 2).exp();
        let found = Vec::<f64>::try_from(plan.sum_dim_intlist(1, false, None)).unwrap();
        for (found, expected) in found.iter().zip([1.0, 1.0, 1.0, 3.0]) {
            assert!((found - expected).abs() < 1e-4, "{found}");
        }
        let owner = Vec::<i64>::try_from(largest_supplier(&plan, &image, 2).view([-1])).unwrap();
        assert_eq!(owner, [0, 1, 2, 3, 3, 3]);
    }

    #[test]
    fn the_first_of_equal_suppliers_is_taken() {
        let value = Tensor::ones([3, 2], (Kind::Float, Device::Cpu));
        let image = Tensor::from_slice(&[0i64, 0, 1]);
        let owner = Vec::<i64>::try_from(largest_supplier(&value, &image, 2).view([-1])).unwrap();
        assert_eq!(owner, [0, 0, 2, 2]);
    }
}
