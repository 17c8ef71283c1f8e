//! All-reduce of the gradients in buckets: slices of the flat buffer, each reduced as soon as
//! backward has computed all of its gradients, overlapped with the rest of backward.
//!
//! Every rank reduces all buckets in the order of the buffer, so that the collectives match on all
//! ranks whatever their batches hold. A bucket is reduced only after those before it. A bucket that
//! backward does not complete, because a parameter has no gradient in this step, is reduced after
//! backward.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dw_launch::{Tag, World};
use dw_torch::GradientHook;
use tch::{Device, Kind, Tensor};

use super::config::{GradCompression, TrainConfig};
use super::flat::{Flat, Slot};
use crate::device::buffer_of;
use crate::model::Params;
use crate::{Error, Result};

/// The gradient buckets of a run.
pub struct Buckets {
    shared: Arc<Shared>,
    hooks: Vec<GradientHook>,
    /// Steps so far: the first is a warm-up, the second measures the all-reduce without overlap.
    steps: usize,
    /// Seconds of an all-reduce of all buckets without overlap; 0 until measured.
    alone_s: f64,
}

/// The cost of communication in one step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Seconds that the host spent on communication, including calls during backward. On a GPU this
    /// is only the time of enqueueing: the device waits, not the host.
    pub exposed_s: f64,
    /// Fraction of the communication that was overlapped with backward, 0 to 1; `None` on a GPU and
    /// in the first steps.
    pub hidden: Option<f64>,
}

/// State shared by the gradient hooks.
struct Shared {
    world: Arc<World>,
    compression: GradCompression,
    /// Range (start, end) of each bucket in the flat buffer, in elements.
    ranges: Vec<(i64, i64)>,
    /// Number of parameters in each bucket.
    num_params: Vec<usize>,
    state: Mutex<State>,
}

struct State {
    /// The flat gradient buffer.
    grads: Tensor,
    /// Whether hooks start all-reduces during backward.
    overlap: bool,
    /// Gradients of each bucket that backward has not computed yet.
    missing: Vec<usize>,
    /// The next bucket to reduce.
    next: usize,
    /// Compressed copies of buckets whose all-reduce is pending.
    copies: Vec<(usize, Tensor)>,
    /// Time spent in hooks during this backward.
    busy: Duration,
    /// The first error of a hook.
    error: Option<Error>,
}

/// Divides a buffer of `total` elements into buckets. `ends` holds the end offset of each
/// parameter. A bucket ends with the parameter that fills it to at least `size` elements, or
/// `first` for the first bucket, which is small so that communication starts early. The last bucket
/// may be smaller.
fn bucket_ranges(ends: &[i64], total: i64, first: i64, size: i64) -> Vec<(i64, i64)> {
    let (mut out, mut start) = (vec![], 0);
    for &end in ends {
        let limit = if out.is_empty() { first } else { size };
        if end - start >= limit {
            out.push((start, end));
            start = end;
        }
    }
    // The last bucket includes the padding after the last parameter.
    match out.last_mut() {
        Some(last) if ends.last() == Some(&start) => last.1 = total,
        _ => out.push((start, total)),
    }
    out
}

impl Buckets {
    /// Divides the gradients into buckets, and registers a hook for every trained parameter if
    /// there is more than one rank.
    ///
    /// # Errors
    /// A hook that libtorch rejects.
    pub fn new(
        params: &Params,
        flat: &Flat,
        config: &TrainConfig,
        world: &Arc<World>,
    ) -> Result<Self> {
        let width = params.kind.elt_size_in_bytes() as f64;
        let numbers = |mib: f64| ((mib * f64::from(1 << 20) / width) as i64).max(1);
        let ends: Vec<i64> = flat.slots.iter().map(|s| s.range().end).collect();
        let ranges = bucket_ranges(
            &ends,
            flat.grads.size()[0],
            numbers(config.first_bucket_mib),
            numbers(config.bucket_mib),
        );
        let bucket_of = |s: &Slot| ranges.iter().position(|r| s.range().start < r.1).unwrap_or(0);
        let buckets: Vec<usize> = flat.slots.iter().map(bucket_of).collect();
        let mut num_params = vec![0; ranges.len()];
        for bucket in &buckets {
            num_params[*bucket] += 1;
        }
        let state = State {
            grads: flat.grads.shallow_clone(),
            overlap: false,
            missing: vec![],
            next: 0,
            copies: vec![],
            busy: Duration::ZERO,
            error: None,
        };
        let shared = Arc::new(Shared {
            world: world.clone(),
            compression: config.grad_compression,
            num_params,
            state: Mutex::new(state),
            ranges,
        });
        let mut hooks = vec![];
        if world.size() > 1 {
            for (slot, &bucket) in flat.slots.iter().zip(&buckets) {
                let Some(entry) = params.entries.iter().find(|e| e.name == slot.name) else {
                    continue;
                };
                let shared = shared.clone();
                hooks.push(dw_torch::on_gradient(&entry.tensor, move || {
                    shared.gradient_ready(bucket);
                })?);
            }
        }
        Ok(Self { shared, hooks, steps: 0, alone_s: 0.0 })
    }

    /// Runs backward from the loss, and sums the gradients over all ranks.
    ///
    /// # Errors
    /// A lost peer.
    pub fn backward(&mut self, loss: &Tensor) -> Result<Cost> {
        if self.hooks.is_empty() {
            loss.backward();
            return Ok(Cost::default());
        }
        let measure = self.steps == 1;
        {
            let mut s = self.shared.state();
            s.overlap = !measure;
            s.missing.clone_from(&self.shared.num_params);
            (s.next, s.busy) = (0, Duration::ZERO);
        }
        loss.backward();
        let mut s = self.shared.state();
        s.overlap = false;
        if measure {
            // Without a barrier the measurement would include the time that faster ranks wait for
            // others.
            self.shared.world.barrier("all-reduce measurement")?;
        }
        let began = Instant::now();
        // A hook failed: the communicator is not used again.
        if let Some(e) = s.error.take() {
            return Err(e);
        }
        while s.next < self.shared.ranges.len() {
            self.shared.start_next(&mut s)?;
        }
        self.shared.world.finish()?;
        for (bucket, copy) in s.copies.drain(..).collect::<Vec<_>>() {
            tch::no_grad(|| self.shared.slice(&s.grads, bucket).copy_(&copy));
        }
        let exposed_s = (began.elapsed() + s.busy).as_secs_f64();
        if measure {
            self.alone_s = exposed_s;
        }
        self.steps += 1;
        let on_host = !matches!(s.grads.device(), Device::Cuda(_));
        let hidden = (on_host && self.steps > 2 && self.alone_s > 0.0)
            .then(|| (1.0 - exposed_s / self.alone_s).max(0.0));
        Ok(Cost { exposed_s, hidden })
    }

    /// Number of buckets, and seconds of an all-reduce of all of them without overlap (0 until
    /// measured).
    pub fn stats(&self) -> (usize, f64) {
        (self.shared.ranges.len(), self.alone_s)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A bucket's view of the gradients.
    fn slice(&self, grads: &Tensor, bucket: usize) -> Tensor {
        let (start, end) = self.ranges[bucket];
        grads.narrow(0, start, end - start)
    }

    /// Called by libtorch during backward when a gradient of a bucket is complete. Starts the
    /// all-reduce of the buckets that are now complete, and progresses pending ones.
    fn gradient_ready(&self, bucket: usize) {
        let mut s = self.state();
        if !s.overlap || s.error.is_some() {
            return;
        }
        let began = Instant::now();
        s.missing[bucket] = s.missing[bucket].saturating_sub(1);
        while s.next < self.ranges.len() && s.missing[s.next] == 0 {
            if let Err(e) = self.start_next(&mut s) {
                s.error = Some(e);
                return;
            }
        }
        if let Err(e) = self.world.progress() {
            s.error = Some(e);
        }
        s.busy += began.elapsed();
    }

    /// Starts the all-reduce of the next bucket.
    fn start_next(&self, s: &mut State) -> Result<()> {
        let bucket = s.next;
        s.next += 1;
        let slice = self.slice(&s.grads, bucket);
        let tag = Tag { name: "gradients", part: Some(bucket) };
        let reduced = match self.compression {
            GradCompression::None => slice,
            GradCompression::Bf16 => {
                let copy = tch::no_grad(|| slice.to_kind(Kind::BFloat16));
                s.copies.push((bucket, copy.shallow_clone()));
                copy
            }
        };
        // SAFETY: the buffer or the copy lives until `finish` has returned, and backward does not
        // write a bucket after the last of its gradients: each is accumulated once.
        unsafe { self.world.start_sum(buffer_of(&reduced), tag) }?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_cover_the_buffer_exactly_once() {
        assert_eq!(bucket_ranges(&[10, 20, 90, 100], 128, 5, 30), [(0, 10), (10, 90), (90, 128)]);
        assert_eq!(bucket_ranges(&[10], 64, 5, 30), [(0, 64)]);
        assert_eq!(bucket_ranges(&[10, 20], 64, 100, 100), [(0, 64)]);
        assert_eq!(bucket_ranges(&[], 0, 1, 1), [(0, 0)]);
    }

    #[test]
    fn a_hook_is_called_once_per_backward_after_the_gradient_is_complete() {
        use crate::model::params::Init;
        use std::sync::atomic::{AtomicUsize, Ordering};
        let mut p = Params::new(Kind::Float, Device::Cpu);
        let w = p.param("w", &[2, 3, 3, 3], Init::Normal(1.0), true, true);
        let unused = p.param("u", &[4], Init::Const(1.0), true, true);
        let flat = Flat::new(&mut p).unwrap();
        let (count, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(()));
        let (c, d, grads) =
            (count.clone(), dropped.clone(), Mutex::new(flat.grads.shallow_clone()));
        let hook = dw_torch::on_gradient(&w, move || {
            assert_eq!(Arc::strong_count(&d), 2);
            assert!(
                f64::try_from(grads.lock().unwrap().abs().sum(Kind::Float)).unwrap() > 0.0,
                "the gradient is in the buffer"
            );
            c.fetch_add(1, Ordering::Relaxed);
        })
        .unwrap();
        let x = Tensor::ones([1, 3, 8, 8], (Kind::Float, Device::Cpu));
        for round in 1..=3 {
            // The weight is used twice, as the head's weights are used on every level.
            let y = x.conv2d::<Tensor>(&w, None, [1, 1], [1, 1], [1, 1], 1).sum(Kind::Float)
                + x.conv2d::<Tensor>(&w, None, [2, 2], [1, 1], [1, 1], 1).sum(Kind::Float);
            y.backward();
            assert_eq!(count.load(Ordering::Relaxed), round);
        }
        assert!(
            !unused.grad().defined()
                || f64::try_from(unused.grad().abs().sum(Kind::Float)).unwrap() == 0.0
        );
        drop(hook);
        drop((w, p, flat));
        assert_eq!(Arc::strong_count(&dropped), 1, "the callback is dropped with its parameter");
    }
}
