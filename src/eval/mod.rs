//! Evaluation of a network on a split: inference on all ranks ([`infer`], [`detect`]), then the
//! COCO metric of the crate `dw-metric` on rank 0, without a JSON file in between. Detection on
//! pictures outside a split: [`predictor`].

pub mod bags;
pub mod config;
pub mod detect;
pub mod infer;
pub mod predictor;

use std::io::{BufWriter, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use dw_launch::World;
use dw_metric::cli::id_zero_warning;
use dw_metric::{Detection, Evaluation, GroundTruth, MetricConfig, Problem};
use serde::{Serialize, Serializer};
use tch::Device;

use crate::Result;
use crate::data::{DataConfig, Dataset};
use crate::model::Detector;
pub use config::EvalConfig;
use infer::Timings;
pub use predictor::{Predictor, read_picture};

/// The ground truth of a split, in the metric's form.
#[derive(Debug)]
pub struct Truth {
    /// COCO image ids, in the dataset's order.
    pub images: Vec<i64>,
    /// COCO category ids, indexed by label.
    pub categories: Vec<i64>,
    /// Category names, indexed by label.
    pub names: Vec<String>,
    /// Boxes of all images, crowds included.
    pub boxes: Vec<GroundTruth>,
}

impl Truth {
    /// Reads the boxes of all records of a dataset.
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

    /// The metric's input: this ground truth with `detections`.
    pub fn problem<'a>(&'a self, detections: &'a [Detection]) -> Problem<'a> {
        Problem {
            images: &self.images,
            categories: &self.categories,
            truth: &self.boxes,
            detections,
        }
    }
}

/// The result of an evaluation.
#[derive(Debug)]
pub struct Report {
    /// The COCO metrics.
    pub evaluation: Evaluation,
    /// The ground truth of the split.
    pub truth: Arc<Truth>,
    /// Detections of all images, in the dataset's order.
    pub detections: Vec<Detection>,
    /// Time spent on inference.
    pub timings: Timings,
    /// Seconds spent on matching and accumulating, on rank 0.
    pub matching_s: f64,
}

impl Report {
    /// Logs a warning if an annotation has the id 0: pycocotools drops its match.
    pub fn warn_of_id_zero(&self) {
        let problem = self.truth.problem(&self.detections);
        if let Some(text) = id_zero_warning(&problem, &self.evaluation) {
            tracing::warn!("{text}");
        }
    }
}

/// Everything besides the network that an evaluation depends on.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// The images.
    pub data: &'a Dataset,
    /// Size of the network input.
    pub input: &'a DataConfig,
    /// Post-processing.
    pub config: &'a EvalConfig,
    /// This rank's device.
    pub device: Device,
    /// The communicator of all ranks.
    pub world: &'a World,
    /// Set by a signal: all ranks then abandon the evaluation together.
    pub stop: &'a AtomicBool,
}

/// Evaluates a network on all ranks; returns the report on rank 0 and `None` on the others. Rank 0
/// reads the ground truth into `truth` the first time and reuses it afterwards.
///
/// # Errors
/// See [`infer::detect_all`].
pub fn evaluate(
    detector: &Detector,
    job: &Job,
    truth: &mut Option<Arc<Truth>>,
    metric: &MetricConfig,
) -> Result<Option<Report>> {
    let Some((detections, timings)) = infer::detect_all(detector, job)? else { return Ok(None) };
    let began = Instant::now();
    let truth = match truth {
        Some(truth) => truth.clone(),
        None => truth.insert(Arc::new(Truth::new(job.data)?)).clone(),
    };
    let evaluation = dw_metric::evaluate(&truth.problem(&detections), metric);
    Ok(Some(Report {
        evaluation,
        truth,
        detections,
        timings,
        matching_s: began.elapsed().as_secs_f64(),
    }))
}

/// A detection in COCO's results format.
#[derive(Serialize)]
struct ResultRow {
    image_id: i64,
    category_id: i64,
    bbox: [f64; 4],
    score: f64,
}

/// Writes detections in COCO's results format, a list of objects.
///
/// # Errors
/// A failed write.
pub fn write_results(out: impl Write, detections: &[Detection]) -> std::io::Result<()> {
    let mut out = BufWriter::new(out);
    let row = |d: &Detection| ResultRow {
        image_id: d.image_id,
        category_id: d.category_id,
        bbox: d.bbox,
        score: d.score,
    };
    serde_json::Serializer::new(&mut out).collect_seq(detections.iter().map(row))?;
    out.flush()
}
