//! The fused SGD update.

use std::ffi::c_int;

use dw_base::Result;
use tch::Tensor;

use super::error::check;

unsafe extern "C" {
    fn dw_fused_sgd(
        param: *const torch_sys::C_tensor,
        grad: *const torch_sys::C_tensor,
        velocity: *const torch_sys::C_tensor,
        skip: *const torch_sys::C_tensor,
        weight_decay: f64,
        momentum: f64,
        lr: f64,
    ) -> c_int;
}

/// Updates parameters by SGD in one pass over flat buffers of one shape, in place:
/// `v <- momentum v + (g + weight_decay p)`, then `p <- p - lr v`. Nothing changes if `skip`, a
/// scalar f32 on the same device, is 1, so the host need not read it.
///
/// # Errors
/// Out of memory, or the device failed.
///
/// # Panics
/// If the shapes differ.
pub fn fused_sgd(
    param: &mut Tensor,
    grad: &Tensor,
    velocity: &mut Tensor,
    skip: &Tensor,
    [weight_decay, momentum, lr]: [f64; 3],
) -> Result<()> {
    assert!(
        param.size() == grad.size() && param.size() == velocity.size(),
        "parameters, gradients and velocities have different shapes"
    );
    let (p, g, v) = (param.as_ptr(), grad.as_ptr(), velocity.as_ptr());
    // SAFETY: three tensors of one shape and a scalar that live through the call; those it changes
    // are borrowed mutably.
    check(unsafe { dw_fused_sgd(p, g, v, skip.as_ptr(), weight_decay, momentum, lr) })
}
