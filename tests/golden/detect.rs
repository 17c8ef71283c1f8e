//! Post-processing.

use dw::config::EvalConfig;
use dw::eval::detect::{Image, detect};
use dw::model::{Outputs, Rank, head};
use tch::{Kind, Tensor};

use crate::case::{Case, host, number};

pub fn check(case: &Case, kind: Kind) -> Result<(), String> {
    let of = |name: &str| case.levels(&format!("input.{name}"), kind);
    let out = Outputs {
        cls: of("cls_scores"),
        distances: of("bbox_preds"),
        quality: of("centernesses"),
        offset: 0.5,
    };
    let head::Scored { ranked, boxes, levels, .. } = head::scored(&out, Rank::Score);
    let t = &case.json["test_cfg"];
    let config = EvalConfig {
        every_epochs: 1,
        score_threshold: number(&t["score_thr"]),
        per_level: number(&t["nms_pre"]) as usize,
        nms_iou: number(&t["nms"]["iou_threshold"]),
        per_image: number(&t["max_per_img"]) as usize,
        ..EvalConfig::default()
    };
    let list = |t: Tensor| {
        Vec::<f32>::try_from(host(&t).contiguous().reshape([-1])).map_err(|e| e.to_string())
    };
    for image in 0..case.int("batch") {
        let i = image as usize;
        let rescale = case.json["rescale"].as_bool().unwrap_or(false);
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
        let expected = &case.json["expected"]["images"][i];
        let count = expected["count"].as_u64().unwrap_or(0) as usize;
        if found.len() != count {
            return Err(format!("image {i}: expected {count} detections, found {}", found.len()));
        }
        for (n, d) in found.iter().enumerate() {
            if expected["labels"][n].as_u64() != Some(d.label.into()) {
                return Err(format!(
                    "image {i}, detection {n}: expected label {}, found {}",
                    expected["labels"][n], d.label
                ));
            }
            if (number(&expected["scores"][n]) - f64::from(d.score)).abs() > 1e-6 {
                return Err(format!(
                    "image {i}, detection {n}: expected score {}, found {}",
                    expected["scores"][n], d.score
                ));
            }
            for k in 0..4 {
                if (number(&expected["boxes"][n][k]) - f64::from(d.bbox[k])).abs() > 1e-4 {
                    return Err(format!(
                        "image {i}, detection {n}: expected box {}, found {:?}",
                        expected["boxes"][n], d.bbox
                    ));
                }
            }
        }
    }
    Ok(())
}
