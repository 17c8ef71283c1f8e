//! From a network to COCO's numbers: detections of every image on all ranks, gathered and matched on rank 0.

pub mod coco;
pub mod coco_json;
pub mod command;
pub mod detect;

use std::sync::atomic::{AtomicUsize, Ordering};

use dw_launch::World;
use serde_json::json;
use tch::{Device, Kind};

use crate::config::Config;
use crate::data::Dataset;
use crate::data::augment::{Transform, batch, decode, padded, render};
use crate::error::{Error, Result};
use crate::model::{Detector, head};
use crate::train::to_device;
use coco::{Detection, GroundTruth, Params, Problem, Summary};

/// What an evaluation found.
#[derive(Debug)]
pub struct Report {
    /// COCO's 12 numbers.
    pub summary: Summary,
    /// AP of each category, by label; -1 without ground truth.
    pub per_class: Vec<f64>,
    /// All detections, by image.
    pub detections: Vec<Detection>,
}

/// Detects on record `index` of a dataset; boxes in pixels of the original image.
///
/// # Errors
/// A damaged record.
pub fn detect_record(detector: &Detector, data: &Dataset, index: usize, config: &Config, device: Device) -> Result<Vec<detect::Box>> {
    let record = data.split.record(index)?;
    let e = record.entry;
    let t = Transform::eval(e.width, e.height, &config.data);
    let (w, h) = padded([(t.width, t.height)].into_iter());
    let decoded = decode(&record, &t, &config.data)?;
    let input = batch(1, (w, h), |_, out| {
        render(&decoded, &t, (w, h), out);
        Ok(())
    })?;
    let outputs = tch::no_grad(|| detector.forward(&to_device(&input, device, detector.params.kind), false));
    let (scores, boxes) = tch::no_grad(|| head::predictions(&outputs));
    let levels: Vec<usize> = outputs.sizes().iter().map(|(h, w)| (h * w) as usize).collect();
    let image = detect::Image {
        scores: &Vec::<f32>::try_from(scores.to_device(Device::Cpu).to_kind(Kind::Float).reshape([-1]))?,
        boxes: &Vec::<f32>::try_from(boxes.to_device(Device::Cpu).to_kind(Kind::Float).contiguous().reshape([-1]))?,
        levels: &levels,
        size: (t.width as f32, t.height as f32),
        scale: (t.width as f32 / e.width as f32, t.height as f32 / e.height as f32),
    };
    Ok(detect::detect(&image, &config.eval))
}

/// Evaluates on all ranks; rank 0 gets the report.
///
/// # Errors
/// Bad data, a lost peer, images that were not counted exactly once.
pub fn evaluate(detector: &Detector, data: &Dataset, config: &Config, device: Device, world: &World) -> Result<Option<Report>> {
    let detections = detect_all(detector, data, config, device, world)?;
    let Some(detections) = detections else { return Ok(None) };
    let truth = ground_truth(data)?;
    let images: Vec<i64> = data.records.iter().map(|&i| data.split.entry(i).image_id).collect();
    let categories: Vec<i64> = data.categories().iter().map(|c| c.id).collect();
    let problem = Problem { images: &images, categories: &categories, truth: &truth, detections: &detections };
    let result = coco::evaluate(&problem, &Params::default());
    Ok(Some(Report { summary: result.summary(), per_class: result.per_class(), detections }))
}

/// A network that several threads read.
struct Shared<'a>(&'a Detector);

// SAFETY: `forward` in evaluation only reads the network's tensors; libtorch's reads and its reference counts are
// thread-safe. Nothing changes the network while `detect_range` borrows it.
unsafe impl Sync for Shared<'_> {}

impl Shared<'_> {
    fn detect(&self, data: &Dataset, index: usize, config: &Config, device: Device) -> Result<Vec<detect::Box>> {
        detect_record(self.0, data, index, config, device)
    }
}

/// Detections of the dataset's images `range`, in order.
///
/// On the CPU one thread works on one image: faster than many threads on one, and the result does not depend on the
/// number of threads, which changes the rounding of libtorch's convolutions.
fn detect_range(
    detector: &Detector,
    data: &Dataset,
    range: std::ops::Range<usize>,
    config: &Config,
    device: Device,
) -> Result<Vec<(usize, Vec<detect::Box>)>> {
    let threads = if device == Device::Cpu { tch::get_num_threads().max(1) } else { 1 };
    let (shared, next, end) = (Shared(detector), AtomicUsize::new(range.start), range.end);
    let work = || {
        tch::set_num_threads(1);
        crate::torch_ext::flush_denormals();
        let mut found = vec![];
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= end {
                return Ok(found);
            }
            found.push((i, shared.detect(data, data.records[i], config, device)?));
        }
    };
    let parts: Vec<Result<Vec<_>>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let ended = |_| Err(Error::Data("a thread of the evaluation ended early".into()));
        workers.into_iter().map(|w| w.join().unwrap_or_else(ended)).collect()
    });
    tch::set_num_threads(threads);
    let mut all = vec![];
    for part in parts {
        all.extend(part?);
    }
    all.sort_by_key(|(i, _)| *i);
    Ok(all)
}

/// Numbers of one detection on its way to rank 0.
const WIDTH: usize = 7;

/// Detections of all images on rank 0, image by image in the dataset's order whatever the number of ranks.
///
/// # Errors
/// As [`evaluate`].
pub fn detect_all(detector: &Detector, data: &Dataset, config: &Config, device: Device, world: &World) -> Result<Option<Vec<Detection>>> {
    let (rank, size, n) = (world.rank(), world.size(), data.len());
    let own = n * rank / size..n * (rank + 1) / size;
    let mut rows: Vec<f64> = vec![own.len() as f64];
    for (i, found) in detect_range(detector, data, own, config, device)? {
        for b in found {
            let [x1, y1, x2, y2] = b.bbox.map(f64::from);
            rows.extend([i as f64, f64::from(b.label), x1, y1, x2 - x1, y2 - y1, f64::from(b.score)]);
        }
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
            all.push(Detection { image_id, category_id, bbox: [r[2], r[3], r[4], r[5]], score: r[6] });
        }
    }
    if counted != n {
        return Err(Error::Data(format!("evaluation covered {counted} of {n} images: ranks disagree about the data")));
    }
    Ok(Some(all))
}

/// Ground truth of a dataset.
///
/// # Errors
/// A damaged record.
pub fn ground_truth(data: &Dataset) -> Result<Vec<GroundTruth>> {
    let mut truth = vec![];
    for &i in &data.records {
        let record = data.split.record(i)?;
        truth.extend(record.annotations.boxes.iter().map(|b| GroundTruth {
            id: b.id,
            image_id: record.entry.image_id,
            category_id: data.categories()[b.label as usize].id,
            bbox: b.bbox,
            area: b.area,
            crowd: b.crowd,
        }));
    }
    Ok(truth)
}

/// Detections as COCO's results format.
pub fn results_json(detections: &[Detection]) -> serde_json::Value {
    let row = |d: &Detection| json!({"image_id": d.image_id, "category_id": d.category_id, "bbox": d.bbox, "score": d.score});
    serde_json::Value::Array(detections.iter().map(row).collect())
}
