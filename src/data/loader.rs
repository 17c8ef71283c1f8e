//! Threads that prepare batches ahead of the training loop, in order, a bounded number of steps ahead.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use tch::{Device, Tensor};

use super::augment::{Transform, batch, decode, padded, render};
use super::dataset::Dataset;
use super::sampler::{Arrangement, Order, positions, steps_per_epoch};
use crate::assign::{ImageBoxes, Matcher, Targets};
use crate::geometry::{Grid, level_sizes};
use crate::config::DataConfig;
use crate::{Error, Result};
use crate::device::threads::refused;

/// What a rank trains on in one step.
#[derive(Debug)]
pub struct Batch {
    /// `[b, 3, H, W]`, channels innermost in memory, normalised and padded, on the host.
    pub images: Tensor,
    /// What the strategy's matcher found, in host memory.
    pub targets: Targets,
    /// COCO ids, for messages.
    pub image_ids: Vec<i64>,
    /// Sizes `(w, h)` before padding.
    pub sizes: Vec<(u32, u32)>,
}

/// Everything that decides a batch.
#[derive(Clone)]
pub struct Recipe {
    /// `[data]`.
    pub data: DataConfig,
    /// Finds the targets.
    pub matcher: Arc<dyn Matcher>,
    /// Seed of order and augmentation.
    pub seed: u64,
    /// Images of all ranks in one step.
    pub global_batch: usize,
    /// This rank.
    pub rank: usize,
    /// Ranks.
    pub world: usize,
    /// Where batches will be used: those for a GPU lie in page-locked memory, which it can copy by itself.
    pub device: Device,
}

/// What a rank's batch will be, before anything is decoded.
#[derive(Debug, PartialEq)]
pub struct Sketch {
    /// Images with their change, in order.
    pub images: Vec<(usize, Transform)>,
    /// Size (w, h) of the tensor: the largest padded shape of its groups.
    pub padded: (u32, u32),
}

/// The batch of a rank in global step `step`, for images of `size` (width, height): a pure function of seed, step and
/// global batch. Each of the fixed groups of `data.group` consecutive positions has a padded shape of its own, which does
/// not depend on the number of ranks either.
pub fn sketch(
    recipe: &Recipe,
    order: &Order,
    images: usize,
    size: impl Fn(usize) -> (u32, u32),
    step: usize,
) -> Sketch {
    let per_epoch = steps_per_epoch(images, recipe.global_batch);
    let (epoch, own) = (
        step / per_epoch,
        positions(step % per_epoch, recipe.rank, recipe.world, recipe.global_batch),
    );
    let change = |position: usize| {
        let image = order.image(position);
        let (w, h) = size(image);
        (image, Transform::train(w, h, &recipe.data, recipe.seed, epoch, position))
    };
    // Whole groups decide the padded shape, also the part of them that other ranks have.
    let group = recipe.data.group;
    let around = own.start / group * group..own.end.next_multiple_of(group);
    let padded = padded(around.map(change).map(|(_, t)| (t.width, t.height)));
    Sketch { images: own.map(change).collect(), padded }
}

/// Makes the batch of global step `step`: called from any thread.
///
/// # Errors
/// A damaged record.
pub fn make_batch(dataset: &Dataset, recipe: &Recipe, order: &Order, step: usize) -> Result<Batch> {
    let size = |image: usize| dataset.split.entry(dataset.records[image]).original();
    let sketch = sketch(recipe, order, dataset.len(), size, step);
    let (w, h) = sketch.padded;
    let grid = Grid {
        sizes: level_sizes(i64::from(h), i64::from(w)).to_vec(),
        offset: recipe.matcher.offset(),
    };
    let (mut image_ids, mut truth) = (vec![], vec![]);
    let images = batch(sketch.images.len(), (w, h), recipe.device, |i, out| {
        let (image, t) = &sketch.images[i];
        let record = dataset.split.record(dataset.records[*image])?;
        render(&decode(&record, t, &recipe.data)?, t, (w, h), out);
        let (boxes, labels) = t.boxes(&record.annotations.boxes, record.entry.original());
        truth.push(ImageBoxes { boxes, labels });
        image_ids.push(record.entry.image_id);
        Ok(())
    })?;
    let sizes = sketch.images.iter().map(|(_, t)| (t.width, t.height)).collect();
    let targets = recipe.matcher.targets(&grid, &truth);
    Ok(Batch { images, targets, image_ids, sizes })
}

/// The order that a dataset is read in.
fn arrangement(dataset: &Dataset, recipe: &Recipe) -> Arrangement {
    let is_portrait = |&record: &usize| {
        let (width, height) = dataset.split.entry(record).original();
        height > width
    };
    Arrangement {
        images: dataset.len(),
        batch: recipe.global_batch,
        nodes: recipe.data.canonical_nodes,
        group: recipe.data.group,
        portrait: recipe
            .data
            .aspect_grouping
            .then(|| Arc::new(dataset.records.iter().map(is_portrait).collect())),
    }
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
    ///
    /// # Errors
    /// The machine does not give a thread.
    pub fn start(
        dataset: &Arc<Dataset>,
        recipe: &Recipe,
        steps: std::ops::Range<usize>,
        threads: usize,
        ahead: usize,
    ) -> Result<Self> {
        let state =
            State { next: steps.start, wanted: steps.start, ready: BTreeMap::new(), closed: false };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            last: steps.end,
            ahead,
        });
        let mut loader = Self { shared, threads: vec![], waited_s: 0.0 };
        for i in 0..threads.max(1) {
            let (shared, dataset, recipe) =
                (loader.shared.clone(), dataset.clone(), recipe.clone());
            let thread = std::thread::Builder::new().name(format!("dw-loader-{i}"));
            let thread = thread.spawn(move || work(&shared, &dataset, &recipe));
            loader.threads.push(thread.map_err(|e| refused("a thread that prepares batches", &e))?);
        }
        Ok(loader)
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
            if self.threads.iter().all(JoinHandle::is_finished) && !state.ready.contains_key(&step)
            {
                return Some(Err(Error::Data(format!(
                    "the threads that prepare batches ended before step {step}"
                ))));
            }
            let waiting =
                self.shared.changed.wait_timeout(state, std::time::Duration::from_millis(500));
            state = waiting.map_or_else(|e| e.into_inner().0, |w| w.0);
        }
    }
}

impl Drop for Loader {
    /// Does not wait for the threads: one may hang on storage that is gone, and a rank that fails must be able to end. They share
    /// what they work on, and end at their next look.
    fn drop(&mut self) {
        lock(&self.shared.state).closed = true;
        self.shared.changed.notify_all();
    }
}

/// A poisoned lock means that a thread panicked: the data under it is still whole (it is only moved in and out).
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn work(shared: &Shared, dataset: &Dataset, recipe: &Recipe) {
    let per_epoch = steps_per_epoch(dataset.len(), recipe.global_batch);
    let arrangement = arrangement(dataset, recipe);
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
                state =
                    shared.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
            }
            state.next += 1;
            state.next - 1
        };
        let epoch = step / per_epoch;
        if order.as_ref().is_none_or(|o| o.0 != epoch) {
            order = Some((epoch, Order::new(&arrangement, recipe.seed, epoch)));
        }
        if let Some((_, order)) = &order {
            let batch = make_batch(dataset, recipe, order, step);
            lock(&shared.state).ready.insert(step, batch);
            shared.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl Matcher for Nothing {
        fn targets(&self, _: &Grid, _: &[ImageBoxes]) -> Targets {
            Targets::Points(crate::assign::PointTargets::default().tensors())
        }
    }

    /// Up to 4,096 ranks: the same images with the same flips, scales and group shapes at the same
    /// positions, and no rank gets fewer.
    #[test]
    fn global_batches_do_not_depend_on_the_ranks() {
        let size = |i: usize| (200 + (i * 37 % 500) as u32, 200 + (i * 53 % 400) as u32);
        let data = DataConfig {
            multi_scale: vec![480, 960],
            aspect_grouping: true,
            ..DataConfig::default()
        };
        for (images, batch, nodes) in
            [(10_007, 4096, 1), (10_007, 4096, 8), (501, 96, 4), (97, 60, 1), (13, 8, 2)]
        {
            let data = DataConfig { canonical_nodes: nodes, ..data.clone() };
            let portrait =
                Some(Arc::new((0..images).map(|i| size(i).1 > size(i).0).collect::<Vec<_>>()));
            let a = Arrangement { images, batch, nodes, group: data.group, portrait };
            let order = Order::new(&a, 9, 1);
            let recipe = |rank, world| Recipe {
                data: data.clone(),
                matcher: Arc::new(Nothing),
                seed: 9,
                global_batch: batch,
                rank,
                world,
                device: Device::Cpu,
            };
            let first = steps_per_epoch(images, batch);
            for step in [first, 2 * first - 1] {
                let whole = sketch(&recipe(0, 1), &order, images, size, step);
                assert_eq!(whole.images.len(), batch);
                for world in (1..=batch).filter(|n| batch % n == 0) {
                    let parts: Vec<Sketch> = (0..world)
                        .map(|rank| sketch(&recipe(rank, world), &order, images, size, step))
                        .collect();
                    assert!(parts.iter().all(|p| p.images.len() == batch / world), "{world} ranks");
                    let joined: Vec<_> = parts.iter().flat_map(|p| p.images.clone()).collect();
                    assert!(
                        joined == whole.images,
                        "{images} images in batches of {batch}, {world} ranks"
                    );
                    if batch / world == data.group {
                        // A rank of one group pads to the group's own shape.
                        for p in &parts {
                            assert_eq!(
                                p.padded,
                                padded(p.images.iter().map(|(_, t)| (t.width, t.height)))
                            );
                        }
                    }
                }
            }
        }
    }
}
