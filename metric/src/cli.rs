//! The command line of `dw-eval coco`.
#![expect(clippy::print_stdout, reason = "the command line's results")]

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::coco::params::{Params, area_ranges, iou_thresholds, max_dets};
use crate::coco::types::Problem;
use crate::coco::{Evaluation, evaluate};
use crate::error::Result;
use crate::json::{self, Truth};

/// A results file against a ground-truth file, with pycocotools' numbers.
#[derive(Debug, Clone, clap::Args)]
pub struct Request {
    /// Ground truth (instances_*.json)
    #[arg(long)]
    pub gt: PathBuf,
    /// Results: [{"image_id": .., "category_id": .., "bbox": [x, y, w, h], "score": ..}, ..]
    #[arg(long)]
    pub dt: PathBuf,
    /// Numbers as JSON, with AP of each class
    #[arg(long)]
    pub json: bool,
    /// A table of each class: AP, AP50, AP75, AR, numbers of boxes
    #[arg(long)]
    pub per_class: bool,
    /// Detections of an (image, class) that count; AP is at the last [default: 1,10,100]
    #[arg(long, value_name = "N,..")]
    pub max_dets: Option<String>,
    /// Areas in pixels beside `all` [default: small:0..1024,medium:1024..9216,large:9216..1e10]
    #[arg(long, value_name = "NAME:LOW..HIGH,..")]
    pub area_ranges: Option<String>,
    /// IoU thresholds, listed or as LOW:HIGH:STEP [default: 0.5:0.95:0.05]
    #[arg(long, value_name = "T,..")]
    pub iou_thresholds: Option<String>,
    /// Count matches with annotation id 0, which pycocotools loses
    #[arg(long)]
    pub count_id_zero: bool,
}

impl Request {
    /// Thresholds and limits that the options ask for.
    ///
    /// # Errors
    /// Options that mean nothing.
    pub fn params(&self) -> Result<Params> {
        let mut p = Params { count_id_zero: self.count_id_zero, ..Params::default() };
        if let Some(text) = &self.max_dets {
            p.max_dets = max_dets(text)?;
        }
        if let Some(text) = &self.area_ranges {
            p.areas = area_ranges(text)?;
        }
        if let Some(text) = &self.iou_thresholds {
            p.iou = iou_thresholds(text)?;
        }
        Ok(p)
    }
}

/// Evaluates and prints.
///
/// # Errors
/// Bad options, bad files.
pub fn run(r: &Request) -> Result<()> {
    let params = r.params()?;
    let mut warnings = vec![];
    let truth = json::truth(&r.gt, &mut warnings)?;
    let detections = json::results(&r.dt, &truth, &mut warnings)?;
    let problem = Problem { images: &truth.images, categories: &truth.categories, truth: &truth.boxes, detections: &detections };
    let result = evaluate(&problem, &params);
    warnings.extend(id_zero(&problem, &result));
    for w in warnings {
        tracing::warn!("{w}");
    }
    if r.json {
        println!("{}", as_json(&result, &truth));
    } else {
        println!("{}", as_text(&result, &truth, r.per_class));
    }
    Ok(())
}

/// What annotation id 0 does to AP: only where there is one is the problem evaluated twice.
pub fn id_zero(problem: &Problem, result: &Evaluation) -> Option<String> {
    if problem.truth.iter().all(|g| g.id != 0) {
        return None;
    }
    let counted = result.params.count_id_zero;
    let other = evaluate(problem, &Params { count_id_zero: !counted, ..result.params.clone() });
    let (lost, kept) = if counted { (&other, result) } else { (result, &other) };
    let (lost, kept) = (lost.ap(None, 0, None), kept.ap(None, 0, None));
    let which = if counted { "here it counts (--count-id-zero)" } else { "so do these numbers; --count-id-zero counts it" };
    Some(format!(
        "an annotation has id 0: pycocotools loses its match, and {which}: AP {lost:.6} without, {kept:.6} with\nhint: number annotations from 1"
    ))
}

/// Names that are all different: a repeated one gets its id.
fn labels(truth: &Truth) -> Vec<String> {
    let repeated = |n: &String| truth.names.iter().filter(|m| *m == n).count() > 1;
    let label = |(name, id): (&String, &i64)| if repeated(name) { format!("{name} (id {id})") } else { name.clone() };
    truth.names.iter().zip(&truth.categories).map(label).collect()
}

/// The numbers and AP of each class; floats in the shortest form that reads back the same.
pub fn as_json(result: &Evaluation, truth: &Truth) -> Value {
    let mut out: Map<String, Value> = result.named().into_iter().map(|(name, value)| (name, json!(value))).collect();
    let classes: Map<String, Value> = labels(truth).into_iter().zip(result.per_class()).map(|(n, v)| (n, json!(v))).collect();
    out.insert("per_class".into(), Value::Object(classes));
    Value::Object(out)
}

/// The numbers, and a table of each class if asked for.
pub fn as_text(result: &Evaluation, truth: &Truth, per_class: bool) -> String {
    let named = result.named();
    let width = named.iter().map(|n| n.0.len()).max().unwrap_or(0).max(6);
    let mut lines: Vec<String> = named.iter().map(|(name, value)| format!("{name:<width$} {value:.4}")).collect();
    if !per_class {
        return lines.join("\n");
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["class", "AP", "AP50", "AP75", "AR", "truth", "crowds", "detections"]);
    for (name, row) in labels(truth).into_iter().zip(result.class_rows()) {
        let number = |v: f64| if v < 0.0 { "-".to_string() } else { format!("{v:.4}") };
        let mut cells = vec![name];
        cells.extend([row.ap, row.ap50, row.ap75, row.ar].map(number));
        cells.extend([row.truth, row.crowds, row.detections].map(|n| n.to_string()));
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(comfy_table::CellAlignment::Right);
    }
    lines.push(format!("\n{table}"));
    lines.join("\n")
}
