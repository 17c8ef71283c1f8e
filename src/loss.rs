//! From local sums to the loss: one small all-reduce carries every term's sum and denominator.

use dw_launch::{Op, World};
use tch::Tensor;

use crate::assign::Term;
use crate::error::Result;

/// The loss of one step.
#[derive(Debug)]
pub struct Loss {
    /// This rank's share, to run backward from: the ranks' gradients add up to the global batch's gradient.
    pub local: Tensor,
    /// Every term over the global batch.
    pub terms: Vec<(&'static str, f64)>,
    /// What each term's sum was divided by.
    pub denominators: Vec<f64>,
    /// Ranks that want to stop after this step.
    pub stop_votes: usize,
}

impl Loss {
    /// Sum of the terms.
    pub fn total(&self) -> f64 {
        self.terms.iter().map(|t| t.1).sum()
    }

    /// Whether no point of the global batch had a positive weight: then both positive terms, sums of
    /// weights times numbers above 0, are exactly 0.
    pub fn without_positive(&self) -> bool {
        self.terms.iter().filter(|t| ["loss_cls_pos", "loss_loc"].contains(&t.0)).all(|t| t.1 == 0.0)
    }
}

/// Adds sums and denominators of all ranks; each denominator is at least 1 after that (the reference clamps the mean
/// over ranks: the same except for batches with fewer boxes than ranks).
///
/// # Errors
/// A lost peer.
pub fn reduce(terms: &[Term], stop: bool, world: &World) -> Result<Loss> {
    let scalars: Vec<Tensor> = terms.iter().flat_map(|t| [t.sum.detach(), t.denominator.shallow_clone()]).collect();
    let mut host = Vec::<f64>::try_from(Tensor::stack(&scalars, 0).to_kind(tch::Kind::Double).to_device(tch::Device::Cpu))?;
    host.push(f64::from(u8::from(stop)));
    world.all_reduce(&mut host, Op::Sum, "loss")?;
    let mut local = Tensor::zeros_like(&terms[0].sum.detach());
    let (mut values, mut denominators) = (vec![], vec![]);
    for (t, pair) in terms.iter().zip(host.chunks_exact(2)) {
        let denominator = pair[1].max(1.0);
        local += &t.sum / denominator;
        values.push((t.name, pair[0] / denominator));
        denominators.push(denominator);
    }
    Ok(Loss { local, terms: values, denominators, stop_votes: host[host.len() - 1] as usize })
}
