//! Threads that prepare batches for the training loop: in order, and at most a given number of
//! steps ahead.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tch::Device;

use super::augment::{Transform, decode, padded, render};
use super::config::DataConfig;
use super::dataset::Dataset;
use super::images::Images;
use super::sampler::{Order, SamplerSettings, positions, steps_per_epoch};
use crate::assign::{ImageBoxes, Matcher, Targets};
use crate::device::cuda;
use crate::device::threads::refused;
use crate::geometry::{Grid, level_sizes};
use crate::{Error, Result};

/// The images and targets of one rank in one step, or a part of them (`train.accumulate`).
#[derive(Debug)]
pub struct Batch {
    /// Resized images, in host memory.
    pub images: Images,
    /// Targets of the strategy's matcher, in host memory.
    pub targets: Targets,
    /// COCO image ids, for error messages.
    pub image_ids: Vec<i64>,
}

/// Everything that a batch depends on, except the dataset and the step.
#[derive(Clone)]
pub struct BatchSettings {
    /// The section `[data]` of the configuration.
    pub data: DataConfig,
    /// Computes the targets.
    pub matcher: Arc<dyn Matcher>,
    /// Seed of the order and of the augmentation.
    pub seed: u64,
    /// Images of one step, over all ranks.
    pub global_batch: usize,
    /// This rank.
    pub rank: usize,
    /// Number of ranks.
    pub world_size: usize,
    /// Number of batches into which a rank's images of one step are divided.
    pub parts: usize,
    /// The device that will use the batches: for a GPU the images are in page-locked memory, so
    /// that they can be copied asynchronously.
    pub device: Device,
}

/// The images, transforms and shape of a rank's batch, known before anything is decoded.
#[derive(Debug, PartialEq)]
pub struct BatchLayout {
    /// Indices into the dataset, each with its transform, in order.
    pub images: Vec<(usize, Transform)>,
    /// Padded (width, height): the largest width and height of the images of all groups in the
    /// batch.
    pub padded: (u32, u32),
}

/// The layout of batch `index` (from 0) of a rank in the run; a step has `settings.parts` batches.
/// `images` is the number of images of the dataset, `size` returns the (width, height) of one. The
/// result is a pure function of seed, step and global batch size: the images and transforms of the
/// global batch, and the padded shape of every group of `data.group` consecutive positions, do not
/// depend on the number of ranks or parts.
pub fn batch_layout(
    settings: &BatchSettings,
    order: &Order,
    images: usize,
    size: impl Fn(usize) -> (u32, u32),
    index: usize,
) -> BatchLayout {
    let per_epoch = steps_per_epoch(images, settings.global_batch);
    let (step, part) = (index / settings.parts, index % settings.parts);
    // The parts of a rank have the images that as many ranks would have.
    let (share, shares) =
        (settings.rank * settings.parts + part, settings.world_size * settings.parts);
    let (epoch, own) =
        (step / per_epoch, positions(step % per_epoch, share, shares, settings.global_batch));
    let transformed = |position: usize| {
        let image = order.image(position);
        let (w, h) = size(image);
        (image, Transform::train(w, h, &settings.data, settings.seed, epoch, position))
    };
    // The padded shape follows from whole groups, including images that belong to other ranks.
    let group = settings.data.group;
    let around = own.start / group * group..own.end.next_multiple_of(group);
    let padded = padded(around.map(transformed).map(|(_, t)| (t.width, t.height)));
    BatchLayout { images: own.map(transformed).collect(), padded }
}

/// Prepares batch `index` (from 0) of a rank in the run: reads, decodes and augments the images,
/// and computes the targets. Can be called from any thread.
///
/// # Errors
/// A damaged record, a failed GPU, or memory that cannot be allocated.
pub fn make_batch(
    dataset: &Dataset,
    settings: &BatchSettings,
    order: &Order,
    index: usize,
) -> Result<Batch> {
    if let Device::Cuda(gpu) = settings.device {
        // Page-locked memory belongs to the current GPU, which is another one in a new thread.
        cuda::set_current(gpu)?;
    }
    let size = |image: usize| dataset.split.entry(dataset.records[image]).original();
    let layout = batch_layout(settings, order, dataset.len(), size, index);
    let (w, h) = layout.padded;
    let grid = Grid {
        sizes: level_sizes(i64::from(h), i64::from(w)).to_vec(),
        offset: settings.matcher.offset(),
    };
    let (mut image_ids, mut truth) = (vec![], vec![]);
    let sizes: Vec<_> = layout.images.iter().map(|(_, t)| (t.width, t.height)).collect();
    let images = Images::new(&sizes, (w, h), settings.device, |i, out| {
        let (image, t) = &layout.images[i];
        let record = dataset.split.record(dataset.records[*image])?;
        render(&decode(&record, t, &settings.data)?, t, (w, h), out);
        let (boxes, labels) = t.boxes(&record.annotations.boxes, record.entry.original());
        let (own_w, own_h) = padded(std::iter::once((t.width, t.height)));
        let padded = Some((i64::from(own_h), i64::from(own_w)));
        truth.push(ImageBoxes { boxes, labels, padded });
        image_ids.push(record.entry.image_id);
        Ok(())
    })?;
    let mut targets = settings.matcher.targets(&grid, &truth);
    if settings.device.is_cuda() {
        targets.page_lock()?;
    }
    Ok(Batch { images, targets, image_ids })
}

/// The sampler's settings for a dataset.
fn sampler_settings(dataset: &Dataset, settings: &BatchSettings) -> SamplerSettings {
    let is_portrait = |&record: &usize| {
        let (width, height) = dataset.split.entry(record).original();
        height > width
    };
    SamplerSettings {
        images: dataset.len(),
        batch: settings.global_batch,
        nodes: settings.data.canonical_nodes,
        group: settings.data.group,
        portrait: settings
            .data
            .aspect_grouping
            .then(|| Arc::new(dataset.records.iter().map(is_portrait).collect())),
    }
}

/// Progress of the threads and of the consumer.
struct State {
    /// The next batch that a thread will prepare.
    next: usize,
    /// The next batch that the consumer will take.
    consumed: usize,
    /// Prepared batches, by index.
    ready: BTreeMap<usize, Result<Batch>>,
    /// Set when the loader is dropped.
    closed: bool,
}

/// State shared by the threads and the consumer.
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// One past the last batch.
    end: usize,
    /// Maximum number of batches that the threads are ahead of the consumer.
    ahead: usize,
}

/// A range of a rank's batches, in order, prepared by background threads.
pub struct Loader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Loader {
    /// Starts `threads` threads that prepare `batches`, at most `ahead` batches ahead of the
    /// consumer.
    ///
    /// # Errors
    /// A thread that cannot be started.
    pub fn start(
        dataset: &Arc<Dataset>,
        settings: &BatchSettings,
        batches: std::ops::Range<usize>,
        threads: usize,
        ahead: usize,
    ) -> Result<Self> {
        let state = State {
            next: batches.start,
            consumed: batches.start,
            ready: BTreeMap::new(),
            closed: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            end: batches.end,
            ahead,
        });
        let mut loader = Self { shared, threads: vec![] };
        for i in 0..threads.max(1) {
            let (shared, dataset, settings) =
                (loader.shared.clone(), dataset.clone(), settings.clone());
            let thread = std::thread::Builder::new().name(format!("dw-loader-{i}"));
            let thread = thread.spawn(move || prepare_batches(&shared, &dataset, &settings));
            loader.threads.push(thread.map_err(|e| refused("a data loader thread", &e))?);
        }
        Ok(loader)
    }

    /// Waits up to `time` for the next `count` batches, or as many as are prepared ahead; returns
    /// whether they are prepared.
    pub fn has_within(&self, time: Duration, count: usize) -> bool {
        let count = count.min(self.shared.ahead);
        let lacking = |s: &mut State| {
            !(s.consumed..s.consumed + count).all(|index| s.ready.contains_key(&index))
        };
        let state = lock(&self.shared.state);
        let waiting = self.shared.changed.wait_timeout_while(state, time, lacking);
        !waiting.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Waits for the next batch; `None` after the last one.
    ///
    /// # Errors
    /// The error that occurred while the batch was prepared.
    pub fn next_batch(&mut self) -> Option<Result<Batch>> {
        let mut state = lock(&self.shared.state);
        let index = state.consumed;
        if index >= self.shared.end {
            return None;
        }
        loop {
            if let Some(batch) = state.ready.remove(&index) {
                state.consumed += 1;
                self.shared.changed.notify_all();
                return Some(batch);
            }
            if self.threads.iter().all(JoinHandle::is_finished) {
                return Some(Err(Error::Bug(format!(
                    "the data loader threads ended without batch {index}"
                ))));
            }
            let waiting = self.shared.changed.wait_timeout(state, Duration::from_millis(500));
            state = waiting.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Loader {
    /// Does not wait for the threads: one may hang in a read from storage that is gone, and a
    /// failing rank must be able to exit. They own what they use, and end when they next check
    /// `closed`.
    fn drop(&mut self) {
        lock(&self.shared.state).closed = true;
        self.shared.changed.notify_all();
    }
}

/// Locks, also after a thread has panicked: values are only moved in and out under the lock, so the
/// state is consistent.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The body of a loader thread: prepares batches until none are left or the loader is dropped.
fn prepare_batches(shared: &Shared, dataset: &Dataset, settings: &BatchSettings) {
    let per_epoch = steps_per_epoch(dataset.len(), settings.global_batch);
    let sampler = sampler_settings(dataset, settings);
    let mut order: Option<(usize, Order)> = None;
    while let Some(index) = next_batch(shared) {
        let epoch = index / settings.parts / per_epoch;
        if order.as_ref().is_none_or(|o| o.0 != epoch) {
            order = Some((epoch, Order::new(&sampler, settings.seed, epoch)));
        }
        if let Some((_, order)) = &order {
            let batch = make_batch(dataset, settings, order, index);
            lock(&shared.state).ready.insert(index, batch);
            shared.changed.notify_all();
        }
    }
}

/// Waits until another batch may be prepared; `None` when there is none.
fn next_batch(shared: &Shared) -> Option<usize> {
    let mut state = lock(&shared.state);
    while !state.closed && state.next < shared.end {
        if state.next < state.consumed + shared.ahead {
            state.next += 1;
            return Some(state.next - 1);
        }
        state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    struct NoTargets;

    impl Matcher for NoTargets {
        fn targets(&self, _: &Grid, _: &[ImageBoxes]) -> Targets {
            Targets::Points(crate::assign::PointTargets::default().tensors())
        }
    }

    /// Up to 4,096 ranks: equal shares, and the same images, flips, scales and group shapes at the
    /// same positions. The parts of a rank are the batches of as many ranks.
    #[test]
    fn batches_do_not_depend_on_the_number_of_ranks_and_parts() {
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
            let sampler = SamplerSettings { images, batch, nodes, group: data.group, portrait };
            let order = Order::new(&sampler, 9, 1);
            let settings = |rank, world_size, parts| BatchSettings {
                data: data.clone(),
                matcher: Arc::new(NoTargets),
                seed: 9,
                global_batch: batch,
                rank,
                world_size,
                parts,
                device: Device::Cpu,
            };
            let first = steps_per_epoch(images, batch);
            for step in [first, 2 * first - 1] {
                let whole = batch_layout(&settings(0, 1, 1), &order, images, size, step);
                assert_eq!(whole.images.len(), batch);
                for ranks in (1..=batch).filter(|n| batch % n == 0) {
                    let parts: Vec<BatchLayout> = (0..ranks)
                        .map(|rank| {
                            batch_layout(&settings(rank, ranks, 1), &order, images, size, step)
                        })
                        .collect();
                    let two = if ranks % 2 == 0 { 2 } else { 1 };
                    for rank in [0, ranks / two - 1] {
                        let s = settings(rank, ranks / two, two);
                        let of = |part| batch_layout(&s, &order, images, size, step * two + part);
                        assert!((0..two).all(|part| of(part) == parts[rank * two + part]));
                    }
                    assert!(parts.iter().all(|p| p.images.len() == batch / ranks), "{ranks} ranks");
                    let joined: Vec<_> = parts.iter().flat_map(|p| p.images.clone()).collect();
                    assert!(
                        joined == whole.images,
                        "{images} images in batches of {batch}, {ranks} ranks"
                    );
                    if batch / ranks == data.group {
                        // A rank with a single group pads to the shape of that group.
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
