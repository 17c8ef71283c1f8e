//! The network over a split, on all ranks: every image once, whatever their number, gathered on rank 0.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use dw_launch::Op;
use dw_metric::Detection;
use tch::{Device, Kind, Tensor};

use super::Job;
use super::detect::{self, Box};
use crate::config::Config;
use crate::data::Dataset;
use crate::data::augment::{Transform, batch, decode, padded, render};
use crate::device::upload;
use crate::{Error, Result};
use crate::model::Detector;
use crate::model::head::{self, Scored};

/// Seconds that went into the parts, all threads and ranks together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spent {
    /// Reading, decoding, resizing.
    pub decode_s: f64,
    /// The network, with the way to and from its device.
    pub network_s: f64,
    /// Threshold, best of each level, NMS.
    pub nms_s: f64,
}

impl Spent {
    fn add(&mut self, o: &Self) {
        self.decode_s += o.decode_s;
        self.network_s += o.network_s;
        self.nms_s += o.nms_s;
    }
}

/// Detects on records of a dataset that go through the network together; boxes in pixels of the original images.
///
/// # Errors
/// A damaged record.
pub fn detect_records(
    detector: &Detector,
    data: &Dataset,
    records: &[usize],
    config: &Config,
    device: Device,
    spent: &mut Spent,
) -> Result<Vec<Vec<Box>>> {
    let mut clock = Clock(Instant::now());
    let records = records
        .iter()
        .map(|&i| data.split.record(i))
        .collect::<std::result::Result<Vec<_>, _>>()?;
    // The input's size follows from the original's, and boxes go back to it, also where fewer pixels are stored.
    let originals: Vec<(u32, u32)> = records.iter().map(|r| r.entry.original()).collect();
    let views: Vec<Transform> =
        originals.iter().map(|(w, h)| Transform::eval(*w, *h, &config.data)).collect();
    let (w, h) = padded(views.iter().map(|t| (t.width, t.height)));
    let pixels = records
        .iter()
        .zip(&views)
        .map(|(r, t)| decode(r, t, &config.data))
        .collect::<Result<Vec<_>>>()?;
    let mut candidates = vec![vec![]; records.len()];
    for mirrored in if config.eval.flip { &[false, true][..] } else { &[false] } {
        let input = batch(records.len(), (w, h), device, |i, out| {
            render(&pixels[i], &Transform { flip: *mirrored, ..views[i] }, (w, h), out);
            Ok(())
        })?;
        spent.decode_s += clock.lap();
        let (ranked, factor, boxes, levels) = tch::no_grad(|| {
            let outputs = detector.forward(&upload(&input, device, detector.params.kind), false);
            let Scored { ranked, factor, boxes, levels } = head::scored(&outputs, detector.rank);
            let factor = factor.as_ref().map(host).transpose()?;
            Ok::<_, Error>((host(&ranked)?, factor, host(&boxes)?, levels))
        })?;
        spent.network_s += clock.lap();
        let (per_image, points) = (ranked.len() / records.len(), boxes.len() / 4 / records.len());
        for (i, (t, original)) in views.iter().zip(&originals).enumerate() {
            let image = detect::Image {
                ranked: &ranked[i * per_image..][..per_image],
                factor: factor.as_ref().map(|f| &f[i * points..][..points]),
                boxes: &boxes[i * 4 * points..][..4 * points],
                levels: &levels,
                size: (t.width as f32, t.height as f32),
                scale: (t.width as f32 / original.0 as f32, t.height as f32 / original.1 as f32),
            };
            candidates[i].extend(detect::candidates(&image, &config.eval, *mirrored));
        }
        spent.nms_s += clock.lap();
    }
    let found = candidates.iter().map(|c| detect::select(c, &config.eval)).collect();
    spent.nms_s += clock.lap();
    Ok(found)
}

fn host(t: &Tensor) -> Result<Vec<f32>> {
    Ok(Vec::try_from(t.to_device(Device::Cpu).to_kind(Kind::Float).contiguous().reshape([-1]))?)
}

/// Seconds since it was looked at last.
struct Clock(Instant);

impl Clock {
    fn lap(&mut self) -> f64 {
        let seconds = self.0.elapsed().as_secs_f64();
        self.0 = Instant::now();
        seconds
    }
}

/// A network that several threads read.
struct Shared<'a>(&'a Detector);

// SAFETY: `forward` in evaluation only reads the network's tensors; libtorch's reads and its reference counts are
// thread-safe. Nothing changes the network while `detect_range` borrows it.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    fn network(&self) -> &'a Detector {
        self.0
    }
}

/// Detections of an image, by its position in the dataset.
type Found = Vec<(usize, Vec<Box>)>;

/// Detections of the dataset's images in `groups` of `eval.batch` neighbours, in order.
///
/// On the CPU one thread works on one group: faster than many threads on one, and the result does not depend on the
/// number of threads, which changes the rounding of libtorch's convolutions.
fn detect_range(detector: &Detector, job: &Job, groups: Range<usize>) -> Result<(Found, Spent)> {
    let Job { data, config, device, stop, .. } = *job;
    let threads = if device == Device::Cpu { tch::get_num_threads().max(1) } else { 1 };
    let (shared, next, end, size) =
        (Shared(detector), AtomicUsize::new(groups.start), groups.end, config.eval.batch);
    let work = || {
        tch::set_num_threads(1);
        crate::torch::flush_denormals();
        let (mut found, mut spent) = (vec![], Spent::default());
        loop {
            let group = next.fetch_add(1, Ordering::Relaxed);
            if group >= end || stop.load(Ordering::Relaxed) {
                return Ok((found, spent));
            }
            let images = group * size..((group + 1) * size).min(data.len());
            let boxes = detect_records(
                shared.network(),
                data,
                &data.records[images.clone()],
                config,
                device,
                &mut spent,
            )?;
            found.extend(images.zip(boxes));
        }
    };
    let parts: Vec<Result<(Found, Spent)>> = std::thread::scope(|scope| {
        let start = |_| std::thread::Builder::new().spawn_scoped(scope, work);
        let workers: Vec<_> = (0..threads).map(start).collect();
        let ended = |_| Err(Error::Data("a thread of the evaluation ended early".into()));
        let refused = |e| Err(crate::device::threads::refused("a thread of the evaluation", &e));
        workers
            .into_iter()
            .map(|w| w.map_or_else(refused, |w| w.join().unwrap_or_else(ended)))
            .collect()
    });
    tch::set_num_threads(threads);
    let (mut all, mut spent) = (vec![], Spent::default());
    for part in parts {
        let (found, s) = part?;
        all.extend(found);
        spent.add(&s);
    }
    all.sort_by_key(|(i, _)| *i);
    Ok((all, spent))
}

/// Numbers of one detection on its way to rank 0.
const WIDTH: usize = 7;

/// Detections of all images on rank 0, image by image in the dataset's order whatever the number of ranks, with what they cost.
///
/// # Errors
/// Bad data, a lost peer, images that were not counted exactly once, a signal.
pub fn detect_all(detector: &Detector, job: &Job) -> Result<Option<(Vec<Detection>, Spent)>> {
    let Job { data, config, world, stop, .. } = *job;
    let (rank, size, groups) = (world.rank(), world.size(), data.len().div_ceil(config.eval.batch));
    let own = groups * rank / size..groups * (rank + 1) / size;
    let (found, spent) = detect_range(detector, job, own)?;
    let mut rows: Vec<f64> = vec![found.len() as f64];
    for (i, boxes) in found {
        for b in boxes {
            let [x1, y1, x2, y2] = b.bbox.map(f64::from);
            rows.extend([
                i as f64,
                f64::from(b.label),
                x1,
                y1,
                x2 - x1,
                y2 - y1,
                f64::from(b.score),
            ]);
        }
    }
    let mut cost = [
        spent.decode_s,
        spent.network_s,
        spent.nms_s,
        f64::from(u8::from(stop.load(Ordering::Relaxed))),
    ];
    world.all_reduce(&mut cost, Op::Sum, "evaluation's cost")?;
    if cost[3] > 0.0 {
        return Err(Error::Preempted("stopped by a signal in an evaluation, which the next start makes up: run again to go on".into()));
    }
    let gathered = world.gather_bytes(bytemuck::cast_slice(&rows), "detections")?;
    if rank != 0 {
        return Ok(None);
    }
    let (mut counted, mut all) = (0, vec![]);
    for part in gathered {
        let part: Vec<f64> = bytemuck::pod_collect_to_vec(&part);
        counted += part[0] as usize;
        for r in part[1..].chunks_exact(WIDTH) {
            let image_id = data.split.entry(data.records[r[0] as usize]).image_id;
            let category_id = data.categories()[r[1] as usize].id;
            all.push(Detection {
                image_id,
                category_id,
                bbox: [r[2], r[3], r[4], r[5]],
                score: r[6],
            });
        }
    }
    if counted != data.len() {
        return Err(Error::Data(format!(
            "evaluation covered {counted} of {} images: ranks disagree about the data",
            data.len()
        )));
    }
    let [decode_s, network_s, nms_s, _] = cost;
    Ok(Some((all, Spent { decode_s, network_s, nms_s })))
}
