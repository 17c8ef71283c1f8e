//! Convolution with a folded batch norm, a residual and ReLU, as one node of the autograd graph.

use std::ffi::c_int;
use std::ptr::null;

use dw_base::Result;
use tch::Tensor;

use super::memory::owned;

unsafe extern "C" {
    fn dw_conv(
        x: *const torch_sys::C_tensor,
        weight: *const torch_sys::C_tensor,
        bias: *const torch_sys::C_tensor,
        gamma: *const torch_sys::C_tensor,
        mean: *const torch_sys::C_tensor,
        var: *const torch_sys::C_tensor,
        residual: *const torch_sys::C_tensor,
        rounded: *const torch_sys::C_tensor,
        stride: i64,
        padding: i64,
        groups: i64,
        relu: c_int,
    ) -> *mut torch_sys::C_tensor;
}

/// A convolution and what is computed together with it. Shapes: C input and O output channels.
#[derive(Debug, Clone, Copy)]
pub struct Convolution<'a> {
    /// Weight `[O, C / groups, k, k]`.
    pub weight: &'a Tensor,
    /// Bias `[O]`; with `norm` the bias (shift) of the norm.
    pub bias: Option<&'a Tensor>,
    /// Weight (scale), mean and variance `[O]` of a batch norm with fixed statistics, which is
    /// folded into weight and bias.
    pub norm: Option<[&'a Tensor; 3]>,
    /// Added to the output before the ReLU, with the output's shape and kind.
    pub residual: Option<&'a Tensor>,
    /// Copy of the weight in the input's kind, without gradient; only without `norm`. If it is
    /// absent, each call makes one: pass it to round a weight only once for several calls.
    pub rounded: Option<&'a Tensor>,
    /// Stride along both axes.
    pub stride: i64,
    /// Padding on all sides.
    pub padding: i64,
    /// Number of groups of channels.
    pub groups: i64,
    /// Whether ReLU is applied to the output.
    pub relu: bool,
}

/// `[B, C, H, W]` to `[B, O, H', W']` of the same kind. Parameters may have another kind than `x`:
/// they are rounded to the kind of `x`, and their gradients have their own kind.
///
/// # Panics
/// If the shapes do not match, memory runs out, or the device failed.
pub fn convolution(x: &Tensor, c: &Convolution) -> Tensor {
    f_convolution(x, c).unwrap_or_else(|e| panic!("convolution: {e}"))
}

/// [`convolution`] with an error instead of a panic.
///
/// # Errors
/// As its panics.
pub fn f_convolution(x: &Tensor, c: &Convolution) -> Result<Tensor> {
    let pointer = |t: Option<&Tensor>| t.map_or(null(), Tensor::as_ptr);
    let [gamma, mean, var] = c.norm.map_or([None; 3], |norm| norm.map(Some));
    // SAFETY: all tensors live through the call, absent ones are null; the C++ function throws
    // nothing and returns a new tensor or null.
    owned(unsafe {
        dw_conv(
            x.as_ptr(),
            c.weight.as_ptr(),
            pointer(c.bias),
            pointer(gamma),
            pointer(mean),
            pointer(var),
            pointer(c.residual),
            pointer(c.rounded),
            c.stride,
            c.padding,
            c.groups,
            c_int::from(c.relu),
        )
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tch::{Device, Kind};

    use super::super::{on_gradient, set_grad};
    use super::*;

    /// Pseudo-random numbers with mean 0 and variance 1, the same in every run.
    fn noise(shape: &[i64], seed: i64) -> Tensor {
        let count: i64 = shape.iter().product();
        let at = Tensor::arange(count, (Kind::Double, Device::Cpu)) + seed as f64 * 1e5;
        let uniform = ((at * 12.9898).sin() * 43758.5453).frac().abs();
        ((uniform - 0.5) * 12f64.sqrt()).view(shape)
    }

    /// A convolution's tensors: x, weight, bias, gamma, residual (leaves), then mean and var.
    fn tensors(kind: Kind, groups: i64, stride: i64, kernel: i64) -> Vec<Tensor> {
        let side = (9 + stride - 1) / stride;
        let all = [
            noise(&[2, 9, 9, 8], 0).permute([0, 3, 1, 2]),
            noise(&[16, 8 / groups, kernel, kernel], 1) * (0.6 / kernel as f64),
            noise(&[16], 2),
            noise(&[16], 3) + 1.0,
            noise(&[2, 16, side, side], 4),
            noise(&[16], 5),
            noise(&[16], 6).square() + 0.3,
        ];
        let leaf = |(i, t): (usize, &Tensor)| t.to_kind(kind).detach().set_requires_grad(i < 5);
        all.iter().enumerate().map(leaf).collect()
    }

    /// The same by libtorch's own operations, one after the other.
    fn composed(t: &[Tensor], c: &Convolution) -> Tensor {
        let (stride, padding) = ([c.stride; 2], [c.padding; 2]);
        let bias = if c.norm.is_some() { None } else { c.bias };
        let mut y = t[0].conv2d(c.weight, bias, stride, padding, [1i64, 1], c.groups);
        if let Some([gamma, mean, var]) = c.norm {
            y = y.batch_norm(Some(gamma), c.bias, Some(mean), Some(var), false, 0.1, 1e-5, true);
        }
        if let Some(residual) = c.residual {
            y += residual;
        }
        if c.relu { y.relu() } else { y }
    }

    /// A 3x3 convolution with this weight and nothing else.
    fn plain(weight: &Tensor) -> Convolution<'_> {
        Convolution {
            weight,
            bias: None,
            norm: None,
            residual: None,
            rounded: None,
            stride: 1,
            padding: 1,
            groups: 1,
            relu: false,
        }
    }

    /// The tensor in channels-last memory.
    fn channels_last(t: &Tensor) -> Tensor {
        t.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
    }

    /// Calls `check` with the outputs and gradients of both implementations, for all combinations
    /// of settings and optional inputs. In half of them the parameters have buffers for their
    /// gradients, as in training.
    fn compare(kind: Kind, reference: Kind, check: impl Fn(&str, &Tensor, &Tensor)) {
        for case in 0..128 {
            let on = |bit: i64| case >> bit & 1 == 1;
            let (groups, stride) = (if on(3) { 2 } else { 1 }, if on(4) { 2 } else { 1 });
            let kernel = if on(6) { 1 } else { 3 };
            let inputs = tensors(reference, groups, stride, kernel);
            let run = |kind: Kind, fused: bool| {
                // Only the activations have `kind`.
                let copy = |(i, t): (usize, &Tensor)| {
                    let kind = if i == 0 || i == 4 { kind } else { reference };
                    t.detach().copy().to_kind(kind).set_requires_grad(t.requires_grad())
                };
                let mut t: Vec<Tensor> = inputs.iter().enumerate().map(copy).collect();
                if on(5) {
                    t[1] = channels_last(&t[1]).detach().set_requires_grad(true);
                    for parameter in &t[1..if on(0) { 4 } else { 3 }] {
                        set_grad(parameter, &parameter.zeros_like()).unwrap();
                    }
                }
                let rounded = t[1].detach().to_kind(kind);
                let c = Convolution {
                    weight: &t[1],
                    bias: Some(&t[2]),
                    norm: on(0).then_some([&t[3], &t[5], &t[6]]),
                    residual: on(1).then_some(&t[4]),
                    rounded: (!on(0)).then_some(&rounded),
                    stride,
                    padding: kernel / 2,
                    groups,
                    relu: on(2),
                };
                let y = if fused { convolution(&t[0], &c) } else { composed(&t, &c) };
                let weights = Tensor::arange(y.numel() as i64, (Kind::Double, Device::Cpu)).sin();
                (&y * weights.view_as(&y).to_kind(y.kind())).sum(y.kind()).backward();
                let mut out = vec![y.detach()];
                out.extend(t[..5].iter().map(Tensor::grad).filter(Tensor::defined));
                out
            };
            let (found, expected) = (run(kind, true), run(reference, false));
            assert_eq!(found.len(), expected.len(), "case {case}: number of gradients");
            for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
                check(&format!("{kind:?}, case {case}, tensor {i}"), f, e);
            }
        }
    }

    #[test]
    fn equals_batch_norm_residual_and_relu_in_values_and_all_gradients() {
        compare(Kind::Double, Kind::Double, |what, found, expected| {
            let off = (found - expected).abs().max().double_value(&[]);
            assert!(
                off <= 1e-12 * expected.abs().max().double_value(&[]).max(1.0),
                "{what}: {off}"
            );
        });
        compare(Kind::Float, Kind::Float, |what, found, expected| {
            assert!(found.allclose(expected, 1e-4, 1e-4, false), "{what}");
        });
    }

    #[test]
    fn bf16_activations_give_gradients_of_the_parameters_in_their_kind() {
        compare(Kind::BFloat16, Kind::Float, |what, found, expected| {
            let parameter = !what.ends_with("tensor 0") && expected.dim() != 4;
            assert!(!parameter || found.kind() == Kind::Float, "{what}: {:?}", found.kind());
            let [a, b] = [found, expected].map(|t| t.to_kind(Kind::Double).reshape([-1]));
            let cosine = (a.dot(&b) / (a.norm() * b.norm())).double_value(&[]);
            // Rounding moves outputs near 0 to the other side of the ReLU.
            assert!(cosine > 0.98, "{what}: cosine {cosine}");
        });
    }

    /// The buffer has the sum over all uses of a weight, and the hook runs after the last of them.
    #[test]
    fn gradients_of_a_weight_are_added_to_its_buffer() {
        let t = tensors(Kind::Float, 1, 1, 3);
        let weight = channels_last(&t[1]).detach().set_requires_grad(true);
        let buffer = weight.ones_like();
        set_grad(&weight, &buffer).unwrap();
        let calls = Arc::new(Mutex::new(vec![]));
        let (seen, watched) = (calls.clone(), Mutex::new(buffer.shallow_clone()));
        let hook = on_gradient(&weight, move || {
            let sum = watched.lock().unwrap().sum(Kind::Double).double_value(&[]);
            seen.lock().unwrap().push(sum);
        });
        let hook = hook.unwrap();
        let c = plain(&weight);
        let loss = |times: i64| {
            let uses = (0..times).map(|n| convolution(&(&t[0] * (n + 1)), &c).sum(Kind::Float));
            uses.reduce(|a, b| a + b).unwrap()
        };
        loss(1).backward();
        let once = &buffer - 1.0;
        assert!(once.abs().max().double_value(&[]) > 0.1);
        loss(3).backward();
        // 1 for the first pass, 1 + 2 + 3 for the second.
        assert!(buffer.allclose(&(&once * 7.0 + 1.0), 1e-4, 1e-4, false));
        assert!(weight.grad().data_ptr() == buffer.data_ptr(), "the buffer is still in place");
        let calls = calls.lock().unwrap();
        let end = buffer.sum(Kind::Double).double_value(&[]);
        assert!(calls.len() == 2 && calls[1] == end, "{calls:?}, {end}");
        drop(hook);
    }

    /// oneDNN's own bf16 gradient of the weight is partly uninitialised here.
    #[test]
    fn bf16_gradients_are_right_on_maps_narrower_than_the_kernel() {
        let weight = (noise(&[64, 64, 3, 3], 7) * 0.1).to_kind(Kind::Float).set_requires_grad(true);
        for (h, w) in [(1, 1), (2, 1), (1, 3), (2, 2)] {
            let x = noise(&[2, 64, h, w], 8).to_kind(Kind::Float);
            let gradient = |kind: Kind| {
                let c = Convolution { stride: 2, ..plain(&weight) };
                weight.shallow_clone().zero_grad();
                let y = convolution(&x.to_kind(kind), &c);
                (&y * &y.detach()).sum(Kind::Float).backward();
                weight.grad().copy()
            };
            let (expected, found) = (gradient(Kind::Float), gradient(Kind::BFloat16));
            let off = (&found - &expected).norm() / expected.norm();
            assert!(off.double_value(&[]) < 0.03, "{h} x {w}: {off:?}");
        }
    }

    #[test]
    fn frozen_parameters_have_no_gradient_and_no_node() {
        let t = tensors(Kind::Float, 1, 1, 3);
        let frozen: Vec<Tensor> = t.iter().map(Tensor::detach).collect();
        let c = Convolution { relu: true, ..plain(&frozen[1]) };
        assert!(!convolution(&frozen[0], &c).requires_grad());
        let y = convolution(&t[0], &c);
        y.sum(Kind::Float).backward();
        assert!(t[0].grad().defined() && !frozen[1].grad().defined());
    }
}
