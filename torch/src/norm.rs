//! L2 norm of all numbers of a tensor.

use dw_base::Result;
use tch::Tensor;

use super::memory::owned;

unsafe extern "C" {
    fn dw_norm(x: *const torch_sys::C_tensor) -> *mut torch_sys::C_tensor;
}

/// L2 norm of all numbers of a tensor, a scalar f64 on its device. On a CPU it is summed in f64 and
/// does not depend on the number of threads.
///
/// # Errors
/// Out of memory, or the device failed.
pub fn norm(x: &Tensor) -> Result<Tensor> {
    // SAFETY: a tensor that lives through the call; the result is new.
    owned(unsafe { dw_norm(x.as_ptr()) })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn the_norm_is_that_of_f64_numbers() {
        tch::manual_seed(1);
        for count in [1, 15, 16, 17, 16_384, 1_000_003] {
            // A large part in front: f32 sums would lose the numbers after it.
            let x = Tensor::randn([count], (Kind::Float, Device::Cpu));
            let _ = x.narrow(0, 0, (count / 10).max(1)).g_mul_scalar_(100.0);
            let expected = f64::try_from(x.to_kind(Kind::Double).norm()).unwrap();
            let found = f64::try_from(&norm(&x).unwrap()).unwrap();
            assert!((found / expected - 1.0).abs() < 1e-12, "{count}: {found}, not {expected}");
        }
        let empty = Tensor::zeros([0], (Kind::Float, Device::Cpu));
        assert_eq!(f64::try_from(&norm(&empty).unwrap()).unwrap(), 0.0);
        let invalid = Tensor::from_slice(&[1f32, f32::NAN, 2.0]);
        assert!(f64::try_from(&norm(&invalid).unwrap()).unwrap().is_nan());
    }
}
