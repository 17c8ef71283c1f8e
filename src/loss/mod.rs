//! Loss functions, and the reduction of local sums to the loss of the global batch: one small
//! all-reduce adds the sums and the normalisers of all terms.

pub mod functions;

use dw_launch::{Op, World};
use dw_torch::Readback;
use tch::{Kind, Tensor};

use crate::Result;
use crate::device::buffer_of;

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

/// A denominator: the sum of `value` over all ranks, at least `floor` and at least the sum of
/// `at_least` over all ranks, plus `plus`.
#[derive(Debug)]
pub struct Normaliser {
    /// Value of this rank's images: a scalar without gradient.
    pub value: Tensor,
    /// Lower bound of the sum over all ranks.
    pub floor: f64,
    /// This rank's part of a lower bound that is summed over the ranks, such as its number of
    /// images.
    pub at_least: f64,
    /// Added after the bounds are applied (mmdetection adds the f32 epsilon to some denominators).
    pub plus: f64,
}

impl Normaliser {
    /// A denominator whose sum over all ranks is at least 1.
    pub fn at_least_one(value: Tensor) -> Self {
        Self { value, floor: 1.0, at_least: 0.0, plus: 0.0 }
    }
}

/// The loss of one step, on the device.
#[derive(Debug)]
pub struct Reduced {
    /// This rank's part of the loss, a scalar to run backward from. The gradients of all ranks and
    /// of all parts of their batches add up to the gradient of the global batch.
    pub local: Tensor,
    /// Sum, normaliser and its lower bound of each term over all ranks, then the number of ranks
    /// that request to stop, f64.
    pub sums: Tensor,
    terms: Vec<TermSettings>,
}

/// Number of values per term that are summed over the ranks.
const NUMBERS: usize = 3;

/// Settings of a term that the host needs to compute its value from the sums.
#[derive(Debug, Clone, Copy)]
struct TermSettings {
    name: &'static str,
    floor: f64,
    plus: f64,
    needs_positives: bool,
}

/// The loss of one step, on the host.
#[derive(Debug)]
pub struct Loss {
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

impl Reduced {
    /// As [`Reduced::local`], of another part of this rank's batch, whose numbers were given to
    /// [`reduce`].
    pub fn local_of(&self, terms: &[Term]) -> Tensor {
        local(terms, &self.sums)
    }

    /// Waits for the sums and computes the loss.
    ///
    /// # Errors
    /// The device failed.
    pub fn read(&self) -> Result<Loss> {
        Ok(self.loss(&Readback::start(&self.sums)?.wait()?))
    }

    /// Computes the loss from `sums` that the host has read.
    pub fn loss(&self, sums: &[f64]) -> Loss {
        let (mut terms, mut denominators, mut without_positive) = (vec![], vec![], true);
        for (t, numbers) in self.terms.iter().zip(sums.chunks_exact(NUMBERS)) {
            let denominator = numbers[1].max(t.floor).max(numbers[2]) + t.plus;
            terms.push((t.name, numbers[0] / denominator));
            denominators.push(denominator);
            without_positive &= !t.needs_positives || numbers[0] == 0.0;
        }
        let stop_votes = sums[NUMBERS * terms.len()] as usize;
        Loss { terms, denominators, stop_votes, without_positive }
    }
}

/// Sum, normaliser and its lower bound of each term, then the vote `stop`: f64, on the device of
/// the terms.
pub fn numbers(terms: &[Term], stop: bool) -> Tensor {
    let vote = Tensor::full_like(&terms[0].sum.detach(), f64::from(u8::from(stop)));
    let of_term = |t: &Term| -> [Tensor; NUMBERS] {
        let at_least = Tensor::full_like(&t.by.value, t.by.at_least);
        [t.sum.detach(), t.by.value.shallow_clone(), at_least]
    };
    let mut scalars: Vec<Tensor> = terms.iter().flat_map(of_term).collect();
    scalars.push(vote);
    Tensor::stack(&scalars, 0).to_kind(Kind::Double)
}

/// Reduces the terms of all ranks to the loss. Sums are f64. `earlier` are the [`numbers`] of other
/// parts of this rank's batch; `stop` is this rank's vote to stop after the step. The host reads
/// nothing back; on a GPU it only enqueues work.
///
/// mmdetection clamps the mean of a normaliser over the ranks; here the sum is clamped. Results
/// differ only in steps in which that sum is smaller than the number of ranks.
///
/// # Errors
/// The connection to another rank is lost.
pub fn reduce(
    terms: &[Term],
    earlier: Option<&Tensor>,
    stop: bool,
    world: &World,
) -> Result<Reduced> {
    let mut sums = numbers(terms, stop);
    if let Some(earlier) = earlier {
        sums += earlier;
    }
    sum_over_ranks(&sums, world)?;
    let settings = |t: &Term| TermSettings {
        name: t.name,
        floor: t.by.floor,
        plus: t.by.plus,
        needs_positives: t.needs_positives,
    };
    Ok(Reduced { local: local(terms, &sums), sums, terms: terms.iter().map(settings).collect() })
}

/// The terms of a part of the batch, divided by the normalisers in `sums` and added up: a scalar to
/// run backward from.
fn local(terms: &[Term], sums: &Tensor) -> Tensor {
    let mut local = Tensor::zeros_like(&terms[0].sum.detach());
    for (i, t) in terms.iter().enumerate() {
        let at = (NUMBERS * i) as i64;
        let value = sums.get(at + 1).clamp_min(t.by.floor).maximum(&sums.get(at + 2));
        let denominator = value + t.by.plus;
        local += &t.sum / denominator.to_kind(t.sum.kind());
    }
    local
}

/// Adds a vector over all ranks, in place.
fn sum_over_ranks(vector: &Tensor, world: &World) -> Result<()> {
    if world.size() == 1 {
        return Ok(());
    }
    let buffer = buffer_of(vector);
    if vector.device().is_cuda() {
        // SAFETY: libtorch reuses the vector's memory only for work enqueued after this sum, which
        // `finish` orders before it.
        unsafe { world.start_sum(buffer, "loss") }?;
        world.finish()
    } else {
        // SAFETY: the vector is contiguous and lives through the call.
        unsafe { world.all_reduce_raw(buffer, Op::Sum, "loss") }
    }
}
