//! Modulated deformable convolution (DCNv2).

use tch::Tensor;

use super::error::last_error;

unsafe extern "C" {
    fn dw_deform_conv2d(
        input: *const torch_sys::C_tensor,
        offset: *const torch_sys::C_tensor,
        mask: *const torch_sys::C_tensor,
        weight: *const torch_sys::C_tensor,
        stride: i64,
        padding: i64,
        groups: i64,
        chunk: i64,
    ) -> *mut torch_sys::C_tensor;
}

/// Modulated deformable convolution with bounded memory: `x` `[B, C, H, W]`, `offset` `[B, 2 K, h,
/// w]` as (dy, dx) for each of the K kernel taps, `mask` `[B, K, h, w]`, `weight` `[O, C / groups,
/// k, k]` to `[B, O, h, w]`.
///
/// The last argument is `[stride, padding, groups, chunk]`; `chunk` is the largest number of
/// sampled input values held at once, in elements.
///
/// # Panics
/// If the shapes do not match, or memory runs out.
pub fn deform_conv2d(
    x: &Tensor,
    offset: &Tensor,
    mask: &Tensor,
    weight: &Tensor,
    [stride, padding, groups, chunk]: [i64; 4],
) -> Tensor {
    let (x, offset, mask, weight) = (x.as_ptr(), offset.as_ptr(), mask.as_ptr(), weight.as_ptr());
    // SAFETY: the four tensors live through the call; the C++ function throws nothing and returns a
    // new tensor or null.
    let out = unsafe { dw_deform_conv2d(x, offset, mask, weight, stride, padding, groups, chunk) };
    assert!(!out.is_null(), "deformable convolution: {}", last_error());
    // SAFETY: the C++ function allocated the tensor and passes its ownership to us.
    unsafe { Tensor::from_ptr(out) }
}
