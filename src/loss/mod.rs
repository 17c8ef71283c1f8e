//! Loss functions, and the way from local sums to the loss: one small all-reduce carries the sum and the normaliser of
//! every term.

pub mod functions;

use dw_launch::{Op, World};
use tch::Tensor;

use crate::Result;

/// One term of the loss: its sum over all ranks divided by its normaliser over all ranks.
#[derive(Debug)]
pub struct Term {
    /// Name in `metrics.jsonl`, beginning with `loss_`.
    pub name: &'static str,
    /// This rank's sum: a scalar, connected to the graph also when the batch has no box, so that every rank has gradients.
    pub sum: Tensor,
    /// What the sum is divided by.
    pub by: Normaliser,
    /// The sum is exactly 0 where no point of the batch is positive.
    pub needs_positives: bool,
}

/// A denominator: the values of all ranks are added, then bounded, then increased.
#[derive(Debug)]
pub struct Normaliser {
    /// This rank's part: a scalar without gradient.
    pub value: Tensor,
    /// Least value of the sum over all ranks.
    pub floor: f64,
    /// Added at the end (mmdetection adds the f32 epsilon where it averages).
    pub plus: f64,
}

impl Normaliser {
    /// At least 1 after the ranks' values were added.
    pub fn at_least_one(value: Tensor) -> Self {
        Self { value, floor: 1.0, plus: 0.0 }
    }
}

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
    without_positive: bool,
}

impl Loss {
    /// Sum of the terms.
    pub fn total(&self) -> f64 {
        self.terms.iter().map(|t| t.1).sum()
    }

    /// Whether no point of the global batch had a positive weight.
    pub fn without_positive(&self) -> bool {
        self.without_positive
    }
}

/// Adds sums and normalisers of all ranks. (The reference clamps the mean of the normalisers over ranks and not their sum:
/// the same except for batches with fewer boxes than ranks.)
///
/// # Errors
/// A lost peer.
pub fn reduce(terms: &[Term], stop: bool, world: &World) -> Result<Loss> {
    let scalars: Vec<Tensor> =
        terms.iter().flat_map(|t| [t.sum.detach(), t.by.value.shallow_clone()]).collect();
    let mut host = Vec::<f64>::try_from(
        Tensor::stack(&scalars, 0).to_kind(tch::Kind::Double).to_device(tch::Device::Cpu),
    )?;
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
