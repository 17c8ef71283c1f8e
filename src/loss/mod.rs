//! Loss functions, and the reduction of local sums to the loss of the global batch: one small
//! all-reduce adds the sums and the normalisers of all terms.

pub mod functions;

use dw_launch::{Op, World};
use tch::{Device, Kind, Tensor};

use crate::{Result, torch};

/// One term of the loss. Its value is the sum over all ranks, divided by the normaliser over all
/// ranks.
#[derive(Debug)]
pub struct Term {
    /// Key in `metrics.jsonl`; starts with `loss_`.
    pub name: &'static str,
    /// Sum over this rank's images: a scalar. It is part of the autograd graph even if the images
    /// have no box, so that every rank has gradients to reduce.
    pub sum: Tensor,
    /// The denominator.
    pub by: Normaliser,
    /// Whether the sum is exactly 0 if no point of the batch is positive.
    pub needs_positives: bool,
}

/// A denominator: the sum of `value` over all ranks, at least `floor`, plus `plus`.
#[derive(Debug)]
pub struct Normaliser {
    /// Value of this rank's images: a scalar without gradient.
    pub value: Tensor,
    /// Lower bound of the sum over all ranks.
    pub floor: f64,
    /// Added after the bound is applied (mmdetection adds the f32 epsilon to some denominators).
    pub plus: f64,
}

impl Normaliser {
    /// A denominator whose sum over all ranks is at least 1.
    pub fn at_least_one(value: Tensor) -> Self {
        Self { value, floor: 1.0, plus: 0.0 }
    }
}

/// The loss of one step.
#[derive(Debug)]
pub struct Loss {
    /// This rank's part of the loss, a scalar to run backward from. The gradients of all ranks add
    /// up to the gradient of the global batch.
    pub local: Tensor,
    /// Name and value of every term, over the global batch.
    pub terms: Vec<(&'static str, f64)>,
    /// Denominator of each term, in the order of `terms`.
    pub denominators: Vec<f64>,
    /// Number of ranks that request to stop after this step.
    pub stop_votes: usize,
    without_positive: bool,
}

impl Loss {
    /// Sum of the terms over the global batch.
    pub fn total(&self) -> f64 {
        self.terms.iter().map(|t| t.1).sum()
    }

    /// Whether no point of the global batch has a positive weight.
    pub fn without_positive(&self) -> bool {
        self.without_positive
    }
}

/// Reduces the terms of all ranks to the loss, in f64. `stop` is this rank's vote to stop after the
/// step.
///
/// mmdetection clamps the mean of a normaliser over ranks, here the sum is clamped; results differ
/// only for batches with fewer boxes than ranks.
///
/// # Errors
/// The connection to another rank is lost.
pub fn reduce(terms: &[Term], stop: bool, world: &World) -> Result<Loss> {
    let scalars: Vec<Tensor> =
        terms.iter().flat_map(|t| [t.sum.detach(), t.by.value.shallow_clone()]).collect();
    // Sum and normaliser of each term, then the vote.
    let sums = Tensor::stack(&scalars, 0).to_kind(Kind::Double).to_device(Device::Cpu);
    let mut host = Vec::<f64>::try_from(sums).map_err(torch::error)?;
    host.push(f64::from(u8::from(stop)));
    world.all_reduce(&mut host, Op::Sum, "loss")?;
    let mut local = Tensor::zeros_like(&terms[0].sum.detach());
    let (mut values, mut denominators, mut without_positive) = (vec![], vec![], true);
    for (t, pair) in terms.iter().zip(host.chunks_exact(2)) {
        let denominator = pair[1].max(t.by.floor) + t.by.plus;
        local += &t.sum / denominator;
        values.push((t.name, pair[0] / denominator));
        denominators.push(denominator);
        without_positive &= !t.needs_positives || pair[0] == 0.0;
    }
    Ok(Loss {
        local,
        terms: values,
        denominators,
        stop_votes: host[host.len() - 1] as usize,
        without_positive,
    })
}
