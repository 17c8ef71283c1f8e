//! The gradients' way to the other ranks: slices of the flat buffer, each sent as soon as backward has made all of it,
//! while backward goes on.
//!
//! Every rank sends all buckets in the buffer's order, whatever its batch holds: a bucket waits for those before it, and what
//! backward never touched (a layer without a gradient in this step) is sent as it is when backward is over (pain 6).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dw_launch::{Buffer, Memory, Number, Tag, World};
use tch::{Device, Kind, Tensor};

use super::flat::{Flat, Slot};
use crate::config::{GradCompression, TrainConfig};
use crate::{Error, Result};
use crate::model::Params;
use crate::torch::{self, GradientHook};

/// All buckets of a run.
pub struct Buckets {
    shared: Arc<Shared>,
    hooks: Vec<GradientHook>,
    /// Steps done: the first is warm-up, the second measures an all-reduce that nothing hides.
    steps: usize,
    alone_s: f64,
}

/// What communication cost in one step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Seconds that the host waited for it, calls during backward included. On a GPU the device waits, not the host: these are
    /// then the seconds that enqueueing took.
    pub exposed_s: f64,
    /// Share of its time that backward hid; `None` until that is known, and on a GPU.
    pub hidden: Option<f64>,
}

struct Shared {
    world: Arc<World>,
    compression: GradCompression,
    /// First and one-past-last number of each bucket.
    ranges: Vec<(i64, i64)>,
    /// Parameters that touch each bucket.
    params: Vec<usize>,
    state: Mutex<State>,
}

struct State {
    grads: Tensor,
    /// Buckets go out during backward.
    live: bool,
    missing: Vec<usize>,
    next: usize,
    /// Compressed copies that are under way.
    copies: Vec<(usize, Tensor)>,
    busy: Duration,
    error: Option<Error>,
}

/// Ends of buckets: the first small, so that sending starts early, then of `size` numbers; no parameter is cut unless it is
/// larger than a bucket. `ends`: one past each parameter.
fn cut(ends: &[i64], total: i64, first: i64, size: i64) -> Vec<(i64, i64)> {
    let (mut out, mut start) = (vec![], 0);
    for &end in ends {
        let limit = if out.is_empty() { first } else { size };
        if end - start >= limit {
            out.push((start, end));
            start = end;
        }
    }
    // Padding behind the last parameter goes with the last bucket.
    match out.last_mut() {
        Some(last) if ends.last() == Some(&start) => last.1 = total,
        _ => out.push((start, total)),
    }
    out
}

impl Buckets {
    /// Cuts the gradients and listens to every trained parameter.
    ///
    /// # Errors
    /// libtorch refuses a hook.
    pub fn new(
        params: &Params,
        flat: &Flat,
        config: &TrainConfig,
        world: &Arc<World>,
    ) -> Result<Self> {
        let width = params.kind.elt_size_in_bytes() as f64;
        let numbers = |mib: f64| ((mib * f64::from(1 << 20) / width) as i64).max(1);
        let ends: Vec<i64> = flat.slots.iter().map(|s| s.range().end).collect();
        let ranges = cut(
            &ends,
            flat.grads.size()[0],
            numbers(config.first_bucket_mib),
            numbers(config.bucket_mib),
        );
        let bucket_of = |s: &Slot| ranges.iter().position(|r| s.range().start < r.1).unwrap_or(0);
        let places: Vec<usize> = flat.slots.iter().map(bucket_of).collect();
        let mut counts = vec![0; ranges.len()];
        for place in &places {
            counts[*place] += 1;
        }
        let state = State {
            grads: flat.grads.shallow_clone(),
            live: false,
            missing: vec![],
            next: 0,
            copies: vec![],
            busy: Duration::ZERO,
            error: None,
        };
        let shared = Arc::new(Shared {
            world: world.clone(),
            compression: config.grad_compression,
            params: counts,
            state: Mutex::new(state),
            ranges,
        });
        let mut hooks = vec![];
        if world.size() > 1 {
            for (slot, &bucket) in flat.slots.iter().zip(&places) {
                let Some(entry) = params.entries.iter().find(|e| e.name == slot.name) else {
                    continue;
                };
                let shared = shared.clone();
                hooks.push(torch::on_gradient(&entry.tensor, move || shared.ready(bucket))?);
            }
        }
        Ok(Self { shared, hooks, steps: 0, alone_s: 0.0 })
    }

    /// Runs backward from the loss and adds the gradients over all ranks on the way.
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
            s.live = !measure;
            s.missing.clone_from(&self.shared.params);
            (s.next, s.busy) = (0, Duration::ZERO);
        }
        loss.backward();
        let mut s = self.shared.state();
        s.live = false;
        if measure {
            // Else the fastest rank would take its waiting for the others for communication.
            self.shared.world.barrier("measuring")?;
        }
        let began = Instant::now();
        while s.next < self.shared.ranges.len() {
            self.shared.send(&mut s)?;
        }
        if let Some(e) = s.error.take() {
            return Err(e);
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

    /// Number of buckets, and seconds of an all-reduce of all of them that nothing hides, once known.
    pub fn facts(&self) -> (usize, f64) {
        (self.shared.ranges.len(), self.alone_s)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slice(&self, grads: &Tensor, bucket: usize) -> Tensor {
        let (start, end) = self.ranges[bucket];
        grads.narrow(0, start, end - start)
    }

    /// A gradient of this bucket is there (called by libtorch within backward).
    fn ready(&self, bucket: usize) {
        let mut s = self.state();
        if !s.live || s.error.is_some() {
            return;
        }
        let began = Instant::now();
        s.missing[bucket] = s.missing[bucket].saturating_sub(1);
        while s.next < self.ranges.len() && s.missing[s.next] == 0 {
            if let Err(e) = self.send(&mut s) {
                s.error = Some(e);
                return;
            }
        }
        if let Err(e) = self.world.progress() {
            s.error = Some(e.into());
        }
        s.busy += began.elapsed();
    }

    /// Starts the sum of the next bucket.
    fn send(&self, s: &mut State) -> Result<()> {
        let bucket = s.next;
        s.next += 1;
        let slice = self.slice(&s.grads, bucket);
        let tag = Tag { name: "gradients", part: Some(bucket) };
        let sent = match self.compression {
            GradCompression::None => slice,
            GradCompression::Bf16 => {
                let copy = tch::no_grad(|| slice.to_kind(Kind::BFloat16));
                s.copies.push((bucket, copy.shallow_clone()));
                copy
            }
        };
        // SAFETY: the buffer or the copy lives until `finish` has returned, and backward does not touch a bucket again after
        // the last of its parameters: each gradient is accumulated once.
        unsafe { self.world.start_sum(buffer_of(&sent), tag) }?;
        Ok(())
    }
}

/// A contiguous tensor's memory.
pub fn buffer_of(t: &Tensor) -> Buffer {
    let number = match t.kind() {
        Kind::Double => Number::F64,
        Kind::BFloat16 => Number::Bf16,
        _ => Number::F32,
    };
    let memory = if matches!(t.device(), Device::Cuda(_)) { Memory::Cuda } else { Memory::Host };
    Buffer { ptr: t.data_ptr(), count: t.numel(), number, memory }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_cover_everything_once() {
        assert_eq!(cut(&[10, 20, 90, 100], 128, 5, 30), [(0, 10), (10, 90), (90, 128)]);
        assert_eq!(cut(&[10], 64, 5, 30), [(0, 64)]);
        assert_eq!(cut(&[10, 20], 64, 100, 100), [(0, 64)]);
        assert_eq!(cut(&[], 0, 1, 1), [(0, 0)]);
    }

    #[test]
    fn a_hook_fires_once_a_backward_after_the_gradient_is_there() {
        use crate::model::params::Init;
        use std::sync::atomic::{AtomicUsize, Ordering};
        let mut p = Params::new(Kind::Float, Device::Cpu);
        let w = p.param("w", &[2, 3, 3, 3], Init::Normal(1.0), true, true);
        let unused = p.param("u", &[4], Init::Const(1.0), true, true);
        let flat = Flat::new(&mut p).unwrap();
        let (count, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(()));
        let (c, d, grads) =
            (count.clone(), dropped.clone(), Mutex::new(flat.grads.shallow_clone()));
        let hook = torch::on_gradient(&w, move || {
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
            // Used twice, as the head's weights are on every level.
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
        assert_eq!(Arc::strong_count(&dropped), 1, "the callback goes with its parameter");
    }
}
