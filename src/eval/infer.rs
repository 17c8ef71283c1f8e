//! Inference on batches of images, and over a split on all ranks: every image exactly once for any
//! number of ranks, with the detections gathered on rank 0.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use dw_launch::Op;
use dw_shards::pixels::Rgb;
use dw_shards::reader::Record;
use tch::{Device, Kind, Tensor};

use super::Job;
use super::config::EvalConfig;
use super::detect::{self, Detection};
use crate::data::augment::{Transform, decode, padded, render};
use crate::data::images::{Images, Normalisation};
use crate::data::{DataConfig, Dataset};
use crate::model::Detector;
use crate::model::heads::{Outputs, Scored, scored};
use crate::{Error, Result};

/// Seconds per stage of inference, summed over all threads and ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timings {
    /// Reading, decoding and resizing.
    pub decode_s: f64,
    /// Normalisation and the forward pass, including copies to and from the device.
    pub network_s: f64,
    /// Threshold, top-k of each level, NMS.
    pub nms_s: f64,
}

impl Timings {
    /// Adds the times of `other`.
    pub fn add(&mut self, other: &Self) {
        self.decode_s += other.decode_s;
        self.network_s += other.network_s;
        self.nms_s += other.nms_s;
    }
}

/// A decoded image.
#[derive(Debug, Clone, Copy)]
pub struct Decoded<'a> {
    /// Its pixels.
    pub pixels: &'a Rgb,
    /// (width, height) of the original image, which the stored image may be a smaller version of.
    /// Input size and boxes refer to it.
    pub original: (u32, u32),
}

/// Runs the network on one batch of records and returns the detections of each record. `input`
/// determines the size of the network input. Adds the time spent to `timings`.
///
/// # Errors
/// A damaged record, or a failure of libtorch.
pub fn detect_records(
    detector: &Detector,
    data: &Dataset,
    records: &[usize],
    (input, eval): (&DataConfig, &EvalConfig),
    device: Device,
    timings: &mut Timings,
) -> Result<Vec<Vec<Detection>>> {
    let mut lap = LapTimer(Instant::now());
    let records = records
        .iter()
        .map(|&i| data.split.record(i))
        .collect::<std::result::Result<Vec<_>, _>>()?;
    let decoded = |r: &Record| {
        let original = r.entry.original();
        Ok((decode(r, &Transform::eval(original.0, original.1, input), input)?, original))
    };
    let decoded = records.iter().map(decoded).collect::<Result<Vec<_>>>()?;
    let images: Vec<Decoded> =
        decoded.iter().map(|(pixels, original)| Decoded { pixels, original: *original }).collect();
    timings.decode_s += lap.lap();
    detect_images(detector, &images, (input, eval), device, timings)
}

/// Runs the network on one batch of images and returns the detections of each image. `input`
/// determines the size of the network input. Adds the time spent to `timings`; resizing counts as
/// `decode_s`.
///
/// With one image per batch, its detections depend on nothing else. With several, they also depend
/// on the common padding and, through rounding, on the number of images.
///
/// # Errors
/// A failure of libtorch.
pub fn detect_images(
    detector: &Detector,
    decoded: &[Decoded],
    (input, eval): (&DataConfig, &EvalConfig),
    device: Device,
    timings: &mut Timings,
) -> Result<Vec<Vec<Detection>>> {
    if decoded.is_empty() {
        return Ok(vec![]);
    }
    let mut lap = LapTimer(Instant::now());
    let views: Vec<Transform> =
        decoded.iter().map(|d| Transform::eval(d.original.0, d.original.1, input)).collect();
    let (w, h) = padded(views.iter().map(|t| (t.width, t.height)));
    let sizes: Vec<(u32, u32)> = views.iter().map(|t| (t.width, t.height)).collect();
    let normalisation = Normalisation::new(device);
    let mut candidates = vec![vec![]; decoded.len()];
    for mirrored in if eval.flip { &[false, true][..] } else { &[false] } {
        let images = Images::new(&sizes, (w, h), device, |i, out| {
            render(decoded[i].pixels, &Transform { flip: *mirrored, ..views[i] }, (w, h), out);
            Ok(())
        })?;
        timings.decode_s += lap.lap();
        let (ranked, factor, boxes, levels) = tch::no_grad(|| {
            let input = normalisation.apply(&images, detector.activations);
            let outputs = detector.forward(&input, false);
            let Scored { ranked, factor, boxes, levels } =
                scored(&outputs, detector.inference.rank);
            let factor = factor.as_ref().map(to_vec).transpose()?;
            Ok::<_, Error>((to_vec(&ranked)?, factor, to_vec(&boxes)?, levels))
        })?;
        timings.network_s += lap.lap();
        let (per_image, points) = (ranked.len() / decoded.len(), boxes.len() / 4 / decoded.len());
        for (i, (t, Decoded { original, .. })) in views.iter().zip(decoded).enumerate() {
            let image = detect::Image {
                ranked: &ranked[i * per_image..][..per_image],
                factor: factor.as_ref().map(|f| &f[i * points..][..points]),
                boxes: &boxes[i * 4 * points..][..4 * points],
                levels: &levels,
                size: (t.width as f32, t.height as f32),
                scale: (t.width as f32 / original.0 as f32, t.height as f32 / original.1 as f32),
            };
            candidates[i].extend(detect::candidates(&image, eval, *mirrored));
        }
        timings.nms_s += lap.lap();
    }
    let vote = detector.inference.vote;
    let detections = candidates.iter().map(|c| detect::select(c, eval, vote)).collect();
    timings.nms_s += lap.lap();
    Ok(detections)
}

/// Raw predictions for one record, and the transformation from its image to the network input.
///
/// # Errors
/// A damaged record, or a failure of libtorch.
pub fn outputs_of(
    detector: &Detector,
    record: &Record,
    input: &DataConfig,
    device: Device,
) -> Result<(Outputs, Transform)> {
    let (width, height) = record.entry.original();
    let view = Transform::eval(width, height, input);
    let size = padded(std::iter::once((view.width, view.height)));
    let pixels = decode(record, &view, input)?;
    let images = Images::new(&[(view.width, view.height)], size, device, |_, out| {
        render(&pixels, &view, size, out);
        Ok(())
    })?;
    let outputs = tch::no_grad(|| {
        detector.forward(&Normalisation::new(device).apply(&images, detector.activations), false)
    });
    Ok((outputs, view))
}

/// The numbers of a tensor as f32 in host memory.
fn to_vec(t: &Tensor) -> Result<Vec<f32>> {
    let host = t.to_device(Device::Cpu).to_kind(Kind::Float).contiguous().reshape([-1]);
    Vec::try_from(host).map_err(dw_torch::error)
}

/// Measures consecutive intervals.
struct LapTimer(Instant);

impl LapTimer {
    /// Seconds since the previous call, or since the start.
    fn lap(&mut self) -> f64 {
        let seconds = self.0.elapsed().as_secs_f64();
        self.0 = Instant::now();
        seconds
    }
}

/// A network that several threads use for inference.
struct Shared<'a>(&'a Detector);

// SAFETY: `forward` for evaluation only reads the network's tensors, and libtorch's reads and
// reference counts are thread-safe. `run_batches` borrows the network, so nothing modifies it
// meanwhile.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    fn network(&self) -> &'a Detector {
        self.0
    }
}

/// Results, each with the index of the image it belongs to.
type Numbered<T> = Vec<(usize, T)>;

/// Calls `work` with the network and the number of each batch of a range; on a CPU in several
/// threads. Returns the results in the order of the batches. Ends early when `stop` is set.
///
/// On the CPU every batch is processed by a single thread: this is faster than many threads on one
/// batch, and the result does not depend on the number of threads, which changes the rounding of
/// libtorch's convolutions.
///
/// # Errors
/// Those of `work`; a thread cannot be started.
pub fn run_batches<T: Send>(
    detector: &Detector,
    device: Device,
    batches: Range<usize>,
    stop: &AtomicBool,
    work: impl Fn(&Detector, usize, &mut Timings) -> Result<T> + Sync,
) -> Result<(Vec<T>, Timings)> {
    let before = tch::get_num_threads().max(1);
    let (shared, next, end) = (Shared(detector), AtomicUsize::new(batches.start), batches.end);
    let take = || {
        tch::set_num_threads(1);
        dw_torch::flush_denormals();
        let (mut results, mut timings) = (vec![], Timings::default());
        loop {
            let batch = next.fetch_add(1, Ordering::Relaxed);
            if batch >= end || stop.load(Ordering::Relaxed) {
                return Ok((results, timings));
            }
            match work(shared.network(), batch, &mut timings) {
                Ok(result) => results.push((batch, result)),
                Err(e) => {
                    // The other threads can stop.
                    next.store(usize::MAX / 2, Ordering::Relaxed);
                    return Err(e);
                }
            }
        }
    };
    // On a GPU in this thread: libtorch keeps the plans of cuDNN's convolutions for each thread,
    // and leaks them when a thread ends.
    let parts = if device.is_cuda() { vec![take()] } else { in_threads(before, take) };
    tch::set_num_threads(before);
    let (mut all, mut timings) = (vec![], Timings::default());
    for part in parts {
        let (results, t) = part?;
        all.extend(results);
        timings.add(&t);
    }
    all.sort_by_key(|(batch, _)| *batch);
    Ok((all.into_iter().map(|(_, result)| result).collect(), timings))
}

/// Runs `f` in several threads and returns their results.
fn in_threads<R: Send>(threads: i32, f: impl Fn() -> Result<R> + Sync) -> Vec<Result<R>> {
    std::thread::scope(|scope| {
        let start = |_| std::thread::Builder::new().spawn_scoped(scope, &f);
        let workers: Vec<_> = (0..threads).map(start).collect();
        let panicked = |_| Err(Error::Bug("an evaluation thread panicked".into()));
        let refused = |e| Err(crate::device::threads::refused("an evaluation thread", &e));
        workers
            .into_iter()
            .map(|w| w.map_or_else(refused, |w| w.join().unwrap_or_else(panicked)))
            .collect()
    })
}

/// Detections of a range of batches of `eval.batch` consecutive images, in the dataset's order,
/// with the index of each image in the dataset. Ends early when `job.stop` is set.
fn detect_range(
    detector: &Detector,
    job: &Job,
    batches: Range<usize>,
) -> Result<(Numbered<Vec<Detection>>, Timings)> {
    let Job { data, input, config, device, stop, .. } = *job;
    let (parts, timings) =
        run_batches(detector, device, batches, stop, |detector, batch, timings| {
            let images = batch * config.batch..((batch + 1) * config.batch).min(data.len());
            let records = &data.records[images.clone()];
            let found = detect_records(detector, data, records, (input, config), device, timings)?;
            Ok(images.zip(found).collect::<Vec<_>>())
        })?;
    Ok((parts.into_iter().flatten().collect(), timings))
}

/// Detections of all images on rank 0, in the dataset's order for any number of ranks, with the
/// time spent; `None` on the other ranks.
///
/// # Errors
/// Bad data, a lost peer, images that were not counted exactly once, or a stop signal on any rank.
pub fn detect_all(
    detector: &Detector,
    job: &Job,
) -> Result<Option<(Vec<dw_metric::Detection>, Timings)>> {
    let Job { data, config, world, stop, .. } = *job;
    let (rank, world_size) = (world.rank(), world.size());
    let num_batches = data.len().div_ceil(config.batch);
    let own = num_batches * rank / world_size..num_batches * (rank + 1) / world_size;
    let (detections, timings) = detect_range(detector, job, own)?;
    let stops = f64::from(u8::from(stop.load(Ordering::Relaxed)));
    let mut sums = [timings.decode_s, timings.network_s, timings.nms_s, stops];
    world.all_reduce(&mut sums, Op::Sum, "evaluation timings")?;
    let [decode_s, network_s, nms_s, stops] = sums;
    if stops > 0.0 {
        return Err(stopped());
    }
    let message = encode(&detections);
    let gathered = world.gather_bytes(bytemuck::cast_slice(&message), "detections")?;
    if rank != 0 {
        return Ok(None);
    }
    let (mut num_images, mut all) = (0, vec![]);
    for part in gathered {
        let part: Vec<f64> = bytemuck::pod_collect_to_vec(&part);
        num_images += part[0] as usize;
        all.extend(part[1..].chunks_exact(ROW_LEN).map(|row| decode_row(row, data)));
    }
    if num_images != data.len() {
        return Err(Error::Inconsistent(format!(
            "evaluation covered {num_images} images, expected {}: the ranks use different data",
            data.len()
        )));
    }
    Ok(Some((all, Timings { decode_s, network_s, nms_s })))
}

/// The error of an evaluation that a signal ended.
pub(super) fn stopped() -> Error {
    Error::Preempted(
        "evaluation stopped by a signal; it is repeated when the run is resumed".into(),
    )
}

/// How many numbers describe one detection in the message to rank 0: image index, label, x, y,
/// width, height, score.
const ROW_LEN: usize = 7;

/// The message of a rank to rank 0: the number of its images, then [`ROW_LEN`] numbers per
/// detection.
fn encode(images: &[(usize, Vec<Detection>)]) -> Vec<f64> {
    let mut message = vec![images.len() as f64];
    for (i, detections) in images {
        for d in detections {
            let ([x, y, w, h], score) = (d.xywh(), f64::from(d.score));
            message.extend([*i as f64, f64::from(d.label), x, y, w, h, score]);
        }
    }
    message
}

/// A detection for the metric, from its [`ROW_LEN`] numbers.
fn decode_row(row: &[f64], data: &Dataset) -> dw_metric::Detection {
    dw_metric::Detection {
        image_id: data.split.entry(data.records[row[0] as usize]).image_id,
        category_id: data.categories()[row[1] as usize].id,
        bbox: [row[2], row[3], row[4], row[5]],
        score: row[6],
    }
}
