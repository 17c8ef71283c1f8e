//! Flat buffers of all trained parameters, their gradients and their momentum.
//!
//! Layout: first the parameters with weight decay, then those without, each part in reverse order
//! of use (the order in which backward computes gradients), every parameter aligned to 256 bytes.
//! Parameters and gradients are views of the buffers, so an SGD step is a few operations, zeroing
//! the gradients is one fill, and an all-reduce needs no copy.

use tch::Tensor;

use crate::Result;
use crate::device::zeros_in_huge_pages;
use crate::model::Params;

/// Alignment of parameters in the buffers.
const ALIGN_BYTES: usize = 256;

/// Position of a parameter in the buffers.
#[derive(Debug, Clone)]
pub struct Slot {
    /// State-dict key.
    pub name: String,
    shape: Vec<i64>,
    /// Index of its first element.
    offset: i64,
    numel: i64,
}

/// The flat buffers, one-dimensional tensors of equal length and layout.
#[derive(Debug)]
pub struct Flat {
    /// Parameters.
    pub params: Tensor,
    /// Gradients of the current step.
    pub grads: Tensor,
    /// Momentum of SGD.
    pub momentum: Tensor,
    /// Number of elements at the front of the buffers, to which weight decay applies.
    pub decayed: i64,
    /// Positions of the trained parameters, in the order of the buffers.
    pub slots: Vec<Slot>,
}

/// A parameter's view of a buffer, in the parameter's shape. Convolution weights are stored
/// channels-last, the faster layout for CPU and GPU kernels.
fn view(buffer: &Tensor, slot: &Slot) -> Tensor {
    let flat = buffer.narrow(0, slot.offset, slot.numel);
    match slot.shape[..] {
        [o, i, h, w] => flat.view([o, h, w, i]).permute([0, 3, 1, 2]),
        _ => flat.view(&slot.shape[..]),
    }
}

/// Each parameter's name and view of a buffer of this layout, in the parameter's shape.
pub fn named_views<'a>(
    buffer: &'a Tensor,
    slots: &'a [Slot],
) -> impl Iterator<Item = (String, Tensor)> + 'a {
    slots.iter().map(|s| (s.name.clone(), view(buffer, s)))
}

impl Slot {
    /// Range of the parameter in the buffers, in elements.
    pub fn range(&self) -> std::ops::Range<i64> {
        self.offset..self.offset + self.numel
    }
}

impl Flat {
    /// Moves the trained parameters of a network into flat buffers; the network's tensors become
    /// views.
    ///
    /// # Errors
    /// A gradient buffer that libtorch rejects.
    pub fn new(params: &mut Params) -> Result<Self> {
        let align = (ALIGN_BYTES / params.kind.elt_size_in_bytes()) as i64;
        let (mut slots, mut order, mut end, mut decayed) = (vec![], vec![], 0i64, 0);
        for decay in [true, false] {
            for (i, e) in params
                .entries
                .iter()
                .enumerate()
                .rev()
                .filter(|(_, e)| e.trainable && e.decay == decay)
            {
                let numel = e.tensor.numel() as i64;
                slots.push(Slot {
                    name: e.name.clone(),
                    shape: e.tensor.size(),
                    offset: end,
                    numel,
                });
                order.push(i);
                end += (numel + align - 1) / align * align;
            }
            if decay {
                decayed = end;
            }
        }
        let zeros = || zeros_in_huge_pages(end, params.kind, params.device);
        let flat = Self { params: zeros(), grads: zeros(), momentum: zeros(), decayed, slots };
        tch::no_grad(|| -> Result<()> {
            for (slot, i) in flat.slots.iter().zip(order) {
                let tensor = &mut params.entries[i].tensor;
                let mut value = view(&flat.params, slot);
                value.copy_(tensor);
                tensor.set_data(&value);
                dw_torch::set_grad(tensor, &view(&flat.grads, slot))?;
            }
            Ok(())
        })?;
        Ok(flat)
    }

    /// Each parameter's name and momentum, in the parameter's shape; the tensors are views.
    pub fn momentum_by_name(&self) -> Vec<(String, Tensor)> {
        named_views(&self.momentum, &self.slots).collect()
    }

    /// L2 norm of the gradient of all parameters, a scalar f64 on the device.
    ///
    /// # Errors
    /// A failed device, or memory that cannot be allocated.
    pub fn grad_norm(&self) -> Result<Tensor> {
        dw_torch::norm(&self.grads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::params::Init;
    use tch::{Device, Kind};

    #[test]
    fn parameters_and_gradients_are_views_of_the_buffers() {
        tch::manual_seed(1);
        let mut p = Params::new(Kind::Float, Device::Cpu);
        let conv = p.param("a.weight", &[4, 3, 3, 3], Init::Normal(1.0), true, true);
        let frozen = p.param("f.weight", &[3], Init::Const(2.0), false, true);
        let scale = p.param("n.weight", &[4], Init::Const(1.5), true, false);
        let before = conv.copy();
        let flat = Flat::new(&mut p).unwrap();
        assert_eq!(
            flat.slots.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(),
            ["a.weight", "n.weight"]
        );
        assert_eq!((flat.decayed, flat.params.size()[0]), (128, 192), "aligned to 64 numbers");
        assert!(
            conv.allclose(&before, 0.0, 0.0, false),
            "values are unchanged by the move to channels-last memory"
        );
        for round in 1..=2 {
            let x =
                Tensor::ones([1, 3, 5, 5], (Kind::Float, Device::Cpu)) * frozen.view([1, 3, 1, 1]);
            let y = x.conv2d::<Tensor>(&conv, None, [1, 1], [1, 1], [1, 1], 1)
                * scale.view([1, 4, 1, 1]);
            y.sum(Kind::Float).backward();
            assert!(f64::try_from(flat.grads.abs().sum(Kind::Float)).unwrap() > 0.0);
            assert_eq!(
                f64::try_from(&conv.grad().get(0).get(1).get(1).get(1)).unwrap(),
                75.0 * f64::from(round),
                "gradients accumulate in place"
            );
        }
        let mut grads = flat.grads.shallow_clone();
        let _ = grads.fill_(0.0);
        assert_eq!(f64::try_from(conv.grad().abs().sum(Kind::Float)).unwrap(), 0.0);
    }

    /// Resident memory of this process, bytes.
    fn resident() -> f64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<f64>().unwrap() * 1024.0
    }

    #[test]
    fn the_memory_of_the_first_values_is_freed() {
        let mut p = Params::new(Kind::Float, Device::Cpu);
        let shape = [64, 512, 16, 16];
        let bytes = 4.0 * shape.iter().product::<i64>() as f64;
        let before = resident();
        let _layer = p.param("a.weight", &shape, Init::Const(1.0), true, true);
        let _flat = Flat::new(&mut p).unwrap();
        let copies = (resident() - before) / bytes;
        assert!(copies < 3.5, "{copies} times the weights: expected values, gradients, momentum");
    }
}
