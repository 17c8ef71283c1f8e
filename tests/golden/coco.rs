//! The metric against pycocotools.

use dw::eval::coco::{Params, Problem, evaluate};
use dw::eval::coco_json;
use serde_json::Value;
use tch::Kind;

use crate::case::{Case, number};

pub fn check(case: &Case, _: Kind) -> Result<(), String> {
    let mut warnings = vec![];
    let truth = coco_json::truth(&case.path.join("gt.json"), &mut warnings).map_err(|e| e.to_string())?;
    let detections = coco_json::results(&case.path.join("dt.json"), &truth, &mut warnings).map_err(|e| e.to_string())?;
    let text = std::fs::read_to_string(case.path.join("expected.json")).map_err(|e| e.to_string())?;
    let expected: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    let problem = Problem { images: &truth.images, categories: &truth.categories, truth: &truth.boxes, detections: &detections };
    let result = evaluate(&problem, &Params::default());
    for (name, found) in result.summary().named() {
        let value = number(&expected["stats"][name]);
        if (found - value).abs() > 1e-12 {
            return Err(format!("{name}: expected {value}, found {found}"));
        }
    }
    for (k, found) in result.per_class().iter().enumerate() {
        let row = &expected["per_category"][k];
        let value = number(&row["AP"]);
        if row["id"].as_i64() != Some(truth.categories[k]) || (found - value).abs() > 1e-12 {
            return Err(format!("AP of category {}: expected {value}, found {found}", row["id"]));
        }
    }
    Ok(())
}
