//! Post-processing: detections from raw predictions.

use dw::eval::EvalConfig;
use dw::eval::detect::{Image, detect};
use dw::model::{Outputs, Rank, heads};
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::case::{Case, host, near, number};

pub fn check(case: &Case, kind: Kind) -> Result<(), String> {
    let of = |name: &str| case.levels(&format!("input.{name}"), kind);
    let out = Outputs {
        cls: of("cls_scores"),
        distances: of("bbox_preds"),
        first: vec![],
        quality: of("centernesses"),
        cls_is: dw::model::ClassOutput::Logit,
        bins: vec![],
        offset: 0.5,
    };
    let heads::Scored { ranked, boxes, levels, .. } = heads::scored(&out, Rank::Score);
    let config = settings(&case.json["test_cfg"]);
    let list = |t: Tensor| {
        Vec::<f32>::try_from(host(&t).contiguous().reshape([-1])).map_err(|e| e.to_string())
    };
    let rescale = case.json["rescale"].as_bool().unwrap_or(false);
    for image in 0..case.int("batch") {
        let i = image as usize;
        let scale =
            |k: usize| if rescale { number(&case.json["scale_factor"][i][k]) as f32 } else { 1.0 };
        let hw = &case.json["img_shape_hw"][i];
        let found = detect(
            &Image {
                ranked: &list(ranked.get(image))?,
                factor: None,
                boxes: &list(boxes.get(image))?,
                levels: &levels,
                size: (number(&hw[1]) as f32, number(&hw[0]) as f32),
                scale: (scale(0), scale(1)),
            },
            &config,
        );
        let found: Vec<_> = found.iter().map(|d| (d.label, d.score, d.bbox)).collect();
        same_detections(&found, &case.json["expected"]["images"][i])
            .map_err(|e| format!("image {i}: {e}"))?;
    }
    Ok(())
}

/// Settings of the evaluation, from mmdetection's `test_cfg`.
fn settings(test_cfg: &Value) -> EvalConfig {
    EvalConfig {
        every_epochs: 1,
        score_threshold: number(&test_cfg["score_thr"]),
        per_level: number(&test_cfg["nms_pre"]) as usize,
        nms_iou: number(&test_cfg["nms"]["iou_threshold"]),
        per_image: number(&test_cfg["max_per_img"]) as usize,
        ..EvalConfig::default()
    }
}

/// Compares label, score and box of each detection of one image, in order.
fn same_detections(found: &[(u32, f32, [f32; 4])], expected: &Value) -> Result<(), String> {
    let count = expected["count"].as_u64().unwrap_or(0) as usize;
    if found.len() != count {
        return Err(format!("expected {count} detections, found {}", found.len()));
    }
    for (n, (label, score, bbox)) in found.iter().enumerate() {
        let row = |key: &str| &expected[key][n];
        if row("labels").as_u64() != Some((*label).into()) {
            return Err(format!("detection {n}: expected label {}, found {label}", row("labels")));
        }
        if !near(f64::from(*score), number(row("scores")), 1e-6) {
            return Err(format!("detection {n}: expected score {}, found {score}", row("scores")));
        }
        for (k, side) in bbox.iter().enumerate() {
            if !near(f64::from(*side), number(&row("boxes")[k]), 1e-4) {
                return Err(format!(
                    "detection {n}: expected box {}, found {bbox:?}",
                    row("boxes")
                ));
            }
        }
    }
    Ok(())
}
