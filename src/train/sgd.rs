//! SGD with momentum m and weight decay wd on the flat buffers: `v <- m v + (g + wd p)`,
//! `p <- p - lr v`.

use tch::Tensor;

use super::flat::Flat;
use crate::Result;

/// Updates the parameters unless `skip`, a scalar f32 on the device, is 1; then sets the gradients
/// to zero.
///
/// # Errors
/// A failed device, or memory that cannot be allocated.
pub fn step(
    flat: &mut Flat,
    lr: f64,
    momentum: f64,
    weight_decay: f64,
    skip: &Tensor,
) -> Result<()> {
    tch::no_grad(|| {
        let Flat { params, grads, momentum: velocity, decayed, .. } = flat;
        // The fused kernel reads each buffer once instead of once per operation: the buffers do not
        // fit into a cache.
        let total = params.size()[0];
        for (start, len, decay) in [(0, *decayed, weight_decay), (*decayed, total - *decayed, 0.0)]
        {
            let part = |t: &Tensor| t.narrow(0, start, len);
            dw_torch::fused_sgd(
                &mut part(params),
                &part(grads),
                &mut part(velocity),
                skip,
                [decay, momentum, lr],
            )?;
        }
        let _ = grads.zero_();
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Params;
    use crate::model::params::Init;
    use tch::{Device, Kind};

    #[test]
    fn a_step_without_momentum_is_gradient_descent() {
        let mut p = Params::new(Kind::Float, Device::Cpu);
        let w = p.param("w", &[1], Init::Const(1.0), true, true);
        let mut flat = Flat::new(&mut p).unwrap();
        (&w * 3.0).sum(Kind::Float).backward();
        for (skip, expected) in [(1f32, 1.0), (0.0, -0.5)] {
            let _ = flat.grads.fill_(3.0);
            step(&mut flat, 0.5, 0.0, 0.0, &Tensor::from(skip)).unwrap();
            assert_eq!(w.double_value(&[0]), expected, "skip {skip}");
        }
    }

    #[test]
    fn two_steps_match_the_formula() {
        let mut p = Params::new(Kind::Double, Device::Cpu);
        let w = p.param("w", &[1], Init::Const(1.0), true, true);
        let n = p.param("n", &[1], Init::Const(1.0), true, false);
        let mut flat = Flat::new(&mut p).unwrap();
        let (mut pw, mut vw, mut pn, mut vn) = (1.0, 0.0, 1.0, 0.0);
        for _ in 0..2 {
            (&w * 3.0 + &n * 3.0).sum(Kind::Double).backward();
            step(&mut flat, 0.1, 0.9, 0.5, &Tensor::from(0f32)).unwrap();
            vw = 0.9 * vw + 3.0 + 0.5 * pw;
            pw -= 0.1 * vw;
            vn = 0.9 * vn + 3.0;
            pn -= 0.1 * vn;
        }
        assert!((w.double_value(&[0]) - pw).abs() < 1e-15);
        assert!(
            (n.double_value(&[0]) - pn).abs() < 1e-15,
            "weight decay does not apply to norm parameters"
        );
    }
}
