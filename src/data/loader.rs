//! Threads that prepare batches ahead of the training loop, in order, a bounded number of steps ahead.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use tch::Tensor;

use super::augment::{Transform, batch, padded, render};
use super::dataset::Dataset;
use super::sampler::{Order, positions, steps_per_epoch};
use crate::assign::{DwConfig, PairTensors, PairsBuilder};
use crate::boxes::level_sizes;
use crate::config::DataConfig;
use crate::error::{Error, Result};

/// What a rank trains on in one step.
#[derive(Debug)]
pub struct Batch {
    /// `[b, 3, H, W]`, channels innermost in memory, normalised and padded, on the host.
    pub images: Tensor,
    /// Boxes and their points, in host memory.
    pub pairs: PairTensors,
    /// COCO ids, for messages.
    pub image_ids: Vec<i64>,
    /// Sizes `(w, h)` before padding.
    pub sizes: Vec<(u32, u32)>,
}

/// Everything that decides a batch.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// `[data]`.
    pub data: DataConfig,
    /// `[assign]`.
    pub assign: DwConfig,
    /// Seed of order and augmentation.
    pub seed: u64,
    /// Images of all ranks in one step.
    pub global_batch: usize,
    /// This rank.
    pub rank: usize,
    /// Ranks.
    pub world: usize,
}

/// Makes the batch of global step `step`: a pure function, called from any thread.
///
/// # Errors
/// A damaged record.
pub fn make_batch(dataset: &Dataset, recipe: &Recipe, order: &Order, step: usize) -> Result<Batch> {
    let per_epoch = steps_per_epoch(dataset.len(), recipe.global_batch);
    let (epoch, own) = (step / per_epoch, positions(step % per_epoch, recipe.rank, recipe.world, recipe.global_batch));
    let transform = |position: usize| {
        let e = dataset.split.entry(dataset.records[order.image(position)]);
        Transform::train(e.width, e.height, &recipe.data, recipe.seed, epoch, position)
    };
    // Whole groups decide the padded shape, also the part of them that other ranks have.
    let group = recipe.data.group;
    let around = own.start / group * group..own.end.next_multiple_of(group);
    let (w, h) = padded(around.map(transform).map(|t| (t.width, t.height)));
    let sizes = level_sizes(i64::from(h), i64::from(w));
    let mut pairs = PairsBuilder::new(&sizes, dataset.categories().len() as i64, &recipe.assign);
    let (mut image_ids, mut unpadded) = (vec![], vec![]);
    let images = batch(own.len(), (w, h), |i, out| {
        let position = own.start + i;
        let record = dataset.split.record(dataset.records[order.image(position)])?;
        let t = transform(position);
        render(&record.decode()?, &t, (w, h), out);
        let (boxes, labels) = t.boxes(&record.annotations.boxes, record.entry.width, record.entry.height);
        pairs.image(&boxes, &labels);
        image_ids.push(record.entry.image_id);
        unpadded.push((t.width, t.height));
        Ok(())
    })?;
    Ok(Batch { images, pairs: pairs.finish().tensors(), image_ids, sizes: unpadded })
}

struct State {
    /// Next step that a thread may take.
    next: usize,
    /// First step that the consumer has not yet taken.
    wanted: usize,
    ready: BTreeMap<usize, Result<Batch>>,
    closed: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    last: usize,
    ahead: usize,
}

/// Batches of the steps `first..last` in order.
pub struct Loader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Seconds the consumer has waited for the last batch.
    pub waited_s: f64,
}

impl Loader {
    /// Starts `threads` threads that stay at most `ahead` steps before the consumer.
    pub fn start(dataset: &Arc<Dataset>, recipe: &Recipe, steps: std::ops::Range<usize>, threads: usize, ahead: usize) -> Self {
        let state = State { next: steps.start, wanted: steps.start, ready: BTreeMap::new(), closed: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), last: steps.end, ahead });
        let threads = (0..threads.max(1))
            .map(|_| {
                let (shared, dataset, recipe) = (shared.clone(), dataset.clone(), recipe.clone());
                std::thread::spawn(move || work(&shared, &dataset, &recipe))
            })
            .collect();
        Self { shared, threads, waited_s: 0.0 }
    }

    /// The next step's batch; `None` after the last.
    ///
    /// # Errors
    /// What went wrong while preparing it.
    pub fn next_batch(&mut self) -> Option<Result<Batch>> {
        let start = Instant::now();
        let mut state = lock(&self.shared.state);
        let step = state.wanted;
        if step >= self.shared.last {
            return None;
        }
        loop {
            if let Some(batch) = state.ready.remove(&step) {
                state.wanted += 1;
                self.shared.changed.notify_all();
                self.waited_s = start.elapsed().as_secs_f64();
                return Some(batch);
            }
            if self.threads.iter().all(JoinHandle::is_finished) && !state.ready.contains_key(&step) {
                return Some(Err(Error::Data(format!("the threads that prepare batches ended before step {step}"))));
            }
            let waiting = self.shared.changed.wait_timeout(state, std::time::Duration::from_millis(500));
            state = waiting.map_or_else(|e| e.into_inner().0, |w| w.0);
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        lock(&self.shared.state).closed = true;
        self.shared.changed.notify_all();
        for t in self.threads.drain(..) {
            // A thread that panicked has told so already.
            let _ = t.join();
        }
    }
}

/// A poisoned lock means that a thread panicked: the data under it is still whole (it is only moved in and out).
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn work(shared: &Shared, dataset: &Dataset, recipe: &Recipe) {
    let per_epoch = steps_per_epoch(dataset.len(), recipe.global_batch);
    let mut order: Option<(usize, Order)> = None;
    loop {
        let step = {
            let mut state = lock(&shared.state);
            loop {
                if state.closed || state.next >= shared.last {
                    return;
                }
                if state.next < state.wanted + shared.ahead {
                    break;
                }
                state = shared.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
            }
            state.next += 1;
            state.next - 1
        };
        let epoch = step / per_epoch;
        if order.as_ref().is_none_or(|o| o.0 != epoch) {
            order = Some((epoch, Order::new(dataset.len(), recipe.seed, epoch)));
        }
        if let Some((_, order)) = &order {
            let batch = make_batch(dataset, recipe, order, step);
            lock(&shared.state).ready.insert(step, batch);
            shared.changed.notify_all();
        }
    }
}
