//! What `dw-eval` does: a checkpoint on a split, or two JSON files against each other.
#![expect(clippy::print_stdout, reason = "the command line's results")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dw_launch::{Topology, World};
use serde_json::{Map, Value, json};

use super::coco::{self, Params, Problem, Summary};
use super::{coco_json, evaluate, results_json};
use crate::app;
use crate::data::Dataset;
use crate::device::Choice;
use crate::error::{Error, Result};

/// Evaluation of a checkpoint.
#[derive(Debug, clap::Args)]
pub struct Request {
    /// Checkpoint folder, work directory (its newest checkpoint), or weight file
    #[arg(required = true)]
    pub checkpoint: Option<PathBuf>,
    /// Configuration that a weight file belongs to
    #[arg(long)]
    pub config: Option<String>,
    /// Set one key, as eval.nms_iou=0.5 (may be repeated)
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    pub set: Vec<String>,
    /// Folder of shards [default: the run's]
    #[arg(long, value_name = "OUT")]
    pub data: Option<PathBuf>,
    /// Split [default: the run's data.val_split]
    #[arg(long)]
    pub split: Option<String>,
    /// Write the detections in COCO's results format
    #[arg(long, value_name = "FILE")]
    pub dt_out: Option<PathBuf>,
    /// Numbers as JSON
    #[arg(long)]
    pub json: bool,
    /// Device
    #[arg(long, value_enum, default_value = "auto")]
    pub device: Choice,
}

/// Evaluates a checkpoint on all ranks.
///
/// # Errors
/// A damaged checkpoint, other categories, bad data.
pub fn checkpoint(r: &Request, topology: &Topology, world: &mut Option<Arc<World>>) -> Result<()> {
    let path = r.checkpoint.as_ref().ok_or_else(|| Error::Usage("expected a checkpoint".into()))?;
    let saved = app::Saved::find(path, r.config.as_deref(), &r.set)?;
    let mut config = saved.config.clone();
    if let Some(d) = &r.data {
        config.data.shards.clone_from(d);
    }
    if let Some(s) = &r.split {
        config.data.val_split.clone_from(s);
    }
    let data = Dataset::open(&config.data.shards, &config.data.val_split, config.data.limit, false)?;
    let (device, _) = app::device(r.device, config.train.threads, topology)?;
    let detector = saved.detector(&data, device)?;
    let world: &World = world.insert(app::join(device)?);
    let began = std::time::Instant::now();
    let report = evaluate(&detector, &data, &config, device, world)?;
    world.barrier("evaluation's end")?;
    let Some(report) = report else { return Ok(()) };
    let seconds = began.elapsed().as_secs_f64();
    tracing::info!("{} images of {} in {seconds:.1} s ({:.1} images/s)", data.len(), data.split.meta.split, data.len() as f64 / seconds);
    if let Some(path) = &r.dt_out {
        write_whole(path, &results_json(&report.detections).to_string())?;
    }
    let names: Vec<String> = data.categories().iter().map(|c| c.name.clone()).collect();
    print(&report.summary, &names, &report.per_class, r.json, r.json);
    Ok(())
}

/// Writes aside, then renames.
fn write_whole(path: &Path, text: &str) -> Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".writing");
    let aside = PathBuf::from(aside);
    fs_err::write(&aside, text).and_then(|()| fs_err::rename(&aside, path)).map_err(Error::io("cannot write", path))
}

/// Evaluates a results file against a ground-truth file.
///
/// # Errors
/// Bad files.
pub fn json_files(gt: &Path, dt: &Path, as_json: bool, per_class: bool, count_id_zero: bool) -> Result<()> {
    let mut warnings = vec![];
    let truth = coco_json::truth(gt, &mut warnings)?;
    let detections = coco_json::results(dt, &truth, &mut warnings)?;
    for w in warnings {
        tracing::warn!("{w}");
    }
    let problem = Problem { images: &truth.images, categories: &truth.categories, truth: &truth.boxes, detections: &detections };
    let result = coco::evaluate(&problem, &Params { count_id_zero, ..Params::default() });
    print(&result.summary(), &truth.names, &result.per_class(), as_json, per_class || as_json);
    Ok(())
}

fn print(summary: &Summary, names: &[String], per_class: &[f64], as_json: bool, with_classes: bool) {
    if as_json {
        let mut out = Map::new();
        for (name, value) in summary.named() {
            out.insert(name.into(), json!(value));
        }
        let classes: Map<String, Value> = names.iter().zip(per_class).map(|(n, v)| (n.clone(), json!(v))).collect();
        out.insert("per_class".into(), Value::Object(classes));
        println!("{}", Value::Object(out));
        return;
    }
    for (name, value) in summary.named() {
        println!("{name:<6} {value:.4}");
    }
    if with_classes {
        for (name, value) in names.iter().zip(per_class) {
            println!("  {name:<20} {value:.4}");
        }
    }
}
