//! From a network to COCO's numbers: detections of every image on all ranks ([`infer`], [`detect`]), matched on rank 0 by the
//! crate `dw-metric`, without JSON on the way.

pub mod command;
pub mod detect;
pub mod infer;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use dw_launch::World;
use dw_metric::{Detection, Evaluation, GroundTruth, Params, Problem};
use serde_json::json;
use tch::Device;

use crate::config::Config;
use crate::data::Dataset;
use crate::Result;
use crate::model::Detector;
use infer::Spent;

/// A split as the metric sees it.
#[derive(Debug)]
pub struct Truth {
    /// Image ids, in the dataset's order.
    pub images: Vec<i64>,
    /// Category ids, by label.
    pub categories: Vec<i64>,
    /// Their names.
    pub names: Vec<String>,
    /// Boxes.
    pub boxes: Vec<GroundTruth>,
}

impl Truth {
    /// Reads all boxes of a dataset.
    ///
    /// # Errors
    /// A damaged record.
    pub fn new(data: &Dataset) -> Result<Self> {
        let mut boxes = vec![];
        for &i in &data.records {
            let record = data.split.record(i)?;
            boxes.extend(record.annotations.boxes.iter().map(|b| GroundTruth {
                id: b.id,
                image_id: record.entry.image_id,
                category_id: data.categories()[b.label as usize].id,
                bbox: b.bbox,
                area: b.area,
                crowd: b.crowd,
            }));
        }
        Ok(Self {
            images: data.records.iter().map(|&i| data.split.entry(i).image_id).collect(),
            categories: data.categories().iter().map(|c| c.id).collect(),
            names: data.categories().iter().map(|c| c.name.clone()).collect(),
            boxes,
        })
    }

    /// The split with what was found on it.
    pub fn problem<'a>(&'a self, detections: &'a [Detection]) -> Problem<'a> {
        Problem {
            images: &self.images,
            categories: &self.categories,
            truth: &self.boxes,
            detections,
        }
    }
}

/// What an evaluation found.
#[derive(Debug)]
pub struct Report {
    /// The numbers.
    pub evaluation: Evaluation,
    /// Ground truth.
    pub truth: Arc<Truth>,
    /// All detections, by image.
    pub detections: Vec<Detection>,
    /// What detecting cost.
    pub spent: Spent,
    /// Seconds of matching and accumulating.
    pub matching_s: f64,
}

/// What is evaluated where.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// Images.
    pub data: &'a Dataset,
    /// How to detect.
    pub config: &'a Config,
    /// This rank's device.
    pub device: Device,
    /// All ranks.
    pub world: &'a World,
    /// Set by a signal: the ranks end together before they are through.
    pub stop: &'a AtomicBool,
}

/// Evaluates on all ranks; rank 0 gets the report. `truth` is read from the data the first time and kept there.
///
/// # Errors
/// Bad data, a lost peer, images that were not counted exactly once, a signal.
pub fn evaluate(
    detector: &Detector,
    job: &Job,
    truth: &mut Option<Arc<Truth>>,
    params: &Params,
) -> Result<Option<Report>> {
    let Some((detections, spent)) = infer::detect_all(detector, job)? else { return Ok(None) };
    let began = Instant::now();
    let truth = match truth {
        Some(known) => known.clone(),
        None => truth.insert(Arc::new(Truth::new(job.data)?)).clone(),
    };
    let evaluation = dw_metric::evaluate(&truth.problem(&detections), params);
    Ok(Some(Report {
        evaluation,
        truth,
        detections,
        spent,
        matching_s: began.elapsed().as_secs_f64(),
    }))
}

/// Detections as COCO's results format.
pub fn results_json(detections: &[Detection]) -> serde_json::Value {
    let row = |d: &Detection| json!({"image_id": d.image_id, "category_id": d.category_id, "bbox": d.bbox, "score": d.score});
    serde_json::Value::Array(detections.iter().map(row).collect())
}
