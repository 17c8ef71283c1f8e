//! Modulated deformable convolution (DCNv2).

use tch::Tensor;

use super::last_error;

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

/// Modulated deformable convolution with bounded memory; the convolution module of the model has the
/// shapes. `[stride, padding, groups, chunk]`: `chunk` bounds the numbers of the sampled columns that exist at once.
///
/// # Panics
/// When the shapes do not fit, or memory runs out.
pub fn deform_conv2d(
    x: &Tensor,
    offset: &Tensor,
    mask: &Tensor,
    weight: &Tensor,
    [stride, padding, groups, chunk]: [i64; 4],
) -> Tensor {
    let (x, offset, mask, weight) = (x.as_ptr(), offset.as_ptr(), mask.as_ptr(), weight.as_ptr());
    // SAFETY: four live tensors for the whole call; the C++ side throws nothing and returns a new tensor or null.
    let out = unsafe { dw_deform_conv2d(x, offset, mask, weight, stride, padding, groups, chunk) };
    assert!(!out.is_null(), "deformable convolution: {}", last_error());
    // SAFETY: a tensor that the C++ side made for us; we own it from here.
    unsafe { Tensor::from_ptr(out) }
}
