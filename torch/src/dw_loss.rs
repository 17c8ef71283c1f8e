//! The loss of dual weighting by the custom kernels.

use std::ffi::c_int;
use std::ptr::{null, null_mut};

use dw_base::Result;
use tch::Tensor;

use super::error::check;

unsafe extern "C" {
    fn dw_use_loss_kernels(on: c_int);
    fn dw_has_dw_loss(cls: *const torch_sys::C_tensor) -> c_int;
    fn dw_dw_loss(
        cls: *const torch_sys::C_tensor,
        distances: *const torch_sys::C_tensor,
        quality: *const torch_sys::C_tensor,
        targets: *const *const torch_sys::C_tensor,
        settings: *const f32,
        out: *mut *mut torch_sys::C_tensor,
    ) -> c_int;
}

/// Switches the kernels of the loss on or off; they are off at start.
pub fn use_loss_kernels(on: bool) {
    // SAFETY: sets a flag; no preconditions.
    unsafe { dw_use_loss_kernels(c_int::from(on)) }
}

/// Whether [`dw_loss`] supports class logits like these: f32 on a GPU, with the kernels loaded and
/// switched on, unless deterministic algorithms are requested.
pub fn has_dw_loss(cls: &Tensor) -> bool {
    // SAFETY: the tensor lives through the call, which throws nothing.
    unsafe { dw_has_dw_loss(cls.as_ptr()) != 0 }
}

/// Results of [`dw_loss`]; the sums are scalars, and only the first three have gradients.
#[derive(Debug)]
pub struct DwLoss {
    /// Sum of the positive classification terms.
    pub cls_pos: Tensor,
    /// Sum of the localisation terms.
    pub loc: Tensor,
    /// Sum of the negative classification terms.
    pub cls_neg: Tensor,
    /// Sum of `1 - P_neg` over the covered logits.
    pub removed: Tensor,
    /// Positive weights of the pairs `[N]`.
    pub w_pos: Tensor,
    /// P_neg of the covered logits `[U]`.
    pub p_neg: Tensor,
}

/// The sums of the released formula for class logits `[B, P, C]`, distances `[B, P, 4]` in pixels
/// and quality logits `[B, P]`. The three loss sums are NaN if a prediction is not finite.
///
/// `targets` are the pairs' point and box `[N]`, the boxes' class `[G]`, the pairs' targets
/// `[4, N]` and stride `[N]`, mean and sigma of the prior `[C, 2]`, and the position and last pair
/// of each covered logit `[U]`. `settings` are beta, mu, gamma1, gamma2 and the value above which
/// the hard prior is 1, which is negative for the soft prior.
///
/// # Errors
/// Shapes do not match, memory runs out, or a kernel cannot be started.
pub fn dw_loss(
    cls: &Tensor,
    distances: &Tensor,
    quality: Option<&Tensor>,
    targets: [&Tensor; 9],
    settings: [f32; 5],
) -> Result<DwLoss> {
    let quality = quality.map_or(null(), Tensor::as_ptr);
    let targets = targets.map(Tensor::as_ptr);
    let mut out = [null_mut(); 6];
    // SAFETY: the tensors and arrays live through the call; the C++ function throws nothing.
    check(unsafe {
        dw_dw_loss(
            cls.as_ptr(),
            distances.as_ptr(),
            quality,
            targets.as_ptr().cast(),
            settings.as_ptr(),
            out.as_mut_ptr(),
        )
    })?;
    // SAFETY: the C++ function allocated the tensors and passes their ownership to us.
    let [cls_pos, loc, cls_neg, removed, w_pos, p_neg] =
        out.map(|t| unsafe { Tensor::from_ptr(t) });
    Ok(DwLoss { cls_pos, loc, cls_neg, removed, w_pos, p_neg })
}
