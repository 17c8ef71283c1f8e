//! The weights that an object's points get under several functions, from a network's predictions on
//! one image (Fig. 5 of the DW paper). DW, GFL and VFL are computed on the same bag, all points
//! inside the box, so that only the function differs. GFL and VFL are also computed as their
//! systems use them: at the positive points of ATSS, with 0 for all other points.

use std::collections::HashSet;

use tch::{Kind, Tensor};

use super::bags::{BagWeights, numbers};
use crate::assign::adaptive::{AdaptiveThreshold, TOPK};
use crate::assign::pairs::PairTensors;
use crate::assign::strategies::weighting::{Function, WeightingConfig};
use crate::assign::{AssignConfig, DwConfig, ImageBoxes, Prior, SoftInputs};
use crate::geometry::STRIDES;
use crate::model::{Params, Predictions};
use crate::{Error, Result};

/// Largest distance of a point that is near the centre of its box, strides.
const NEAR: f64 = 1.5;
/// Lower bound of areas used as denominators, square pixels.
const AREA_EPS: f64 = 1e-6;

/// Values at the points of one box on one level.
#[derive(Debug)]
pub struct Maps {
    /// The box, pixels of the network input.
    pub bbox: [f64; 4],
    /// Its class.
    pub label: i64,
    /// Stride of the level, pixels.
    pub stride: f64,
    /// Points (x, y), pixels of the network input.
    pub points: Vec<(f64, f64)>,
    /// Scores of the box's class.
    pub score: Vec<f64>,
    /// IoU of the predicted boxes.
    pub iou: Vec<f64>,
    /// Weights under each function: DW, GFL and VFL; GFL and VFL at ATSS's positive points.
    pub functions: Vec<FunctionMaps>,
}

/// The weights of the points under one function.
#[derive(Debug)]
pub struct FunctionMaps {
    /// Name of the function; it ends in "ATSS" for weights at the positive points of ATSS.
    pub name: &'static str,
    /// Positive weights.
    pub positive: Vec<f64>,
    /// Negative weights at the class of the box.
    pub negative: Vec<f64>,
    /// Share of the positive weights of all levels at points within 1.5 strides of the centre.
    pub near: f64,
}

/// Computes the maps of box `which` of an image, on the level with the most of DW's positive
/// weight, the finer level on a tie. `config` is the network's strategy: if it is DW, the DW maps
/// use its settings, else the defaults.
///
/// # Errors
/// The image has no such box.
pub fn compute(
    p: &Predictions,
    truth: &ImageBoxes,
    which: usize,
    config: &AssignConfig,
) -> Result<Maps> {
    let Some(bbox) = truth.boxes.get(which) else {
        return Err(Error::Usage(format!(
            "--box {which}: the image has {} boxes to train on, numbered from 0 (crowds and boxes \
             below 1 pixel are not)",
            truth.boxes.len()
        )));
    };
    let dw = match config {
        AssignConfig::Dw(dw) => dw.clone(),
        _ => DwConfig::default(),
    };
    let (pairs, weights) = weights(p, truth, &dw)?;
    let soft = SoftInputs::new(p, &pairs, AREA_EPS);
    let own = pairs.gt.eq(which as i64);
    let of_box = |t: &Tensor| numbers(&t.masked_select(&own));
    let stride = of_box(&pairs.stride)?;
    if stride.is_empty() {
        let [x0, y0, x1, y1] = *bbox;
        return Err(Error::Usage(format!(
            "--box {which}: no point of any level is inside it: it has {:.1} x {:.1} pixels of the \
             network input\nhint: choose a larger box",
            x1 - x0,
            y1 - y0
        )));
    }
    let level = level_of_most(&of_box(&weights[0].1)?, &stride);
    let on_level = |values: Vec<f64>| -> Vec<f64> {
        values.into_iter().zip(&stride).filter(|(_, s)| **s == level).map(|(v, _)| v).collect()
    };
    let xy = p.grid.points(p.cls.kind(), p.cls.device()).index_select(0, &pairs.point);
    let points = on_level(of_box(&xy.select(1, 0))?)
        .into_iter()
        .zip(on_level(of_box(&xy.select(1, 1))?))
        .collect();
    let is_near = pairs.center_offset().square().sum_dim_intlist(0, false, None).le(NEAR * NEAR);
    let is_near = of_box(&is_near.to_kind(Kind::Double))?;
    let functions = weights.iter().map(|(name, positive, negative)| {
        let positive = of_box(positive)?;
        let near: f64 = positive.iter().zip(&is_near).map(|(w, near)| w * near).sum();
        let near = near / positive.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        let (positive, negative) = (on_level(positive), on_level(of_box(negative)?));
        Ok(FunctionMaps { name, positive, negative, near })
    });
    Ok(Maps {
        bbox: bbox.map(f64::from),
        label: truth.labels[which],
        stride: level,
        points,
        score: on_level(of_box(&soft.score_n())?),
        iou: on_level(of_box(&soft.iou_n)?),
        functions: functions.collect::<Result<_>>()?,
    })
}

/// The stride with the largest sum of `weights`, the smallest one on a tie. `stride` is the stride
/// of the point of each weight.
fn level_of_most(weights: &[f64], stride: &[f64]) -> f64 {
    let sum_of = |s: f64| -> f64 {
        weights.iter().zip(stride).filter(|(_, own)| **own == s).map(|(w, _)| w).sum()
    };
    let mut level = STRIDES[0] as f64;
    for s in STRIDES.map(|s| s as f64) {
        if sum_of(s) > sum_of(level) {
            level = s;
        }
    }
    level
}

/// Positive and negative weights `[N]` of all pairs under a function with this name.
type Named = (&'static str, Tensor, Tensor);

/// All (point, box) pairs and their weights under each function. DW, with the settings `dw`, comes
/// first.
fn weights(
    p: &Predictions,
    truth: &ImageBoxes,
    dw: &DwConfig,
) -> Result<(PairTensors, Vec<Named>)> {
    let on_common_bag = |config: AssignConfig| {
        let mut params = Params::new(p.cls.kind(), p.cls.device());
        BagWeights::new(&config.build(&mut params, p.cls.size()[2]), p, truth)
    };
    // Every function sees all points inside the box.
    let dw = AssignConfig::Dw(DwConfig { prior: Prior::Soft, prior_value: 0.0, ..dw.clone() });
    let BagWeights { pairs, positive, negative } = on_common_bag(dw)?;
    let mut all = vec![("DW", positive, negative)];
    for (name, function) in [("GFL", Function::Gfl), ("VFL", Function::Vfl)] {
        let config = WeightingConfig { function, ..WeightingConfig::default() };
        let of = on_common_bag(AssignConfig::Weighting(config))?;
        all.push((name, of.positive, of.negative));
    }
    let soft = SoftInputs::new(p, &pairs, AREA_EPS);
    let (score_n, selected_n) = (soft.score_n(), adaptive_positives(p, truth, &pairs)?);
    for (name, function) in [("GFL, ATSS", Function::Gfl), ("VFL, ATSS", Function::Vfl)] {
        let [positive, p_neg, importance] = function.weights(&score_n, &soft.iou_n);
        all.push((name, positive * &selected_n, p_neg * importance * &selected_n));
    }
    Ok((pairs, all))
}

/// 1 for the pairs whose point is positive for the box under ATSS, else 0, `[N]`.
fn adaptive_positives(p: &Predictions, truth: &ImageBoxes, pairs: &PairTensors) -> Result<Tensor> {
    let atss = AdaptiveThreshold { topk: TOPK };
    let found = atss.point_targets(&p.grid, std::slice::from_ref(truth));
    let found: HashSet<(i64, i64)> = found.positive.into_iter().zip(found.gt).collect();
    let pairs = numbers(&pairs.point)?.into_iter().zip(numbers(&pairs.gt)?);
    let is_positive = |(point, gt)| f64::from(u8::from(found.contains(&(point as i64, gt as i64))));
    let is_positive: Vec<f64> = pairs.map(is_positive).collect();
    Ok(Tensor::from_slice(&is_positive).to_kind(p.cls.kind()).to_device(p.cls.device()))
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::assign::Formula;
    use crate::geometry::{Grid, encode, level_sizes};
    use crate::model::{ClassOutput, Outputs};

    /// A network that predicts the box itself everywhere, with a score that falls from left to
    /// right.
    fn predictions(bbox: [f64; 4]) -> Predictions {
        let grid = Grid::centers(&level_sizes(64, 96));
        let options = (Kind::Double, Device::Cpu);
        let points = grid.points(options.0, options.1);
        let boxes = Tensor::from_slice(&bbox).expand([grid.num_points(), 4], false);
        let distances = encode(&points, &boxes).unsqueeze(0);
        let cls = (points.select(1, 0) * -0.05).view([1, -1, 1]).repeat([1, 1, 2]);
        let outputs = Outputs::empty(ClassOutput::Logit, 0.5);
        Predictions {
            cls,
            cls_is: outputs.cls_is,
            distances,
            first: None,
            quality: None,
            bins: None,
            grid,
        }
    }

    #[test]
    fn maps_are_the_values_of_the_points_inside_the_box() {
        let bbox = [16.0f32, 16.0, 80.0, 64.0];
        let truth = ImageBoxes { boxes: vec![bbox], labels: vec![1], padded: None };
        let p = predictions(bbox.map(f64::from));
        for formula in [Formula::Released, Formula::Paper] {
            let config = AssignConfig::Dw(DwConfig { formula, ..DwConfig::default() });
            let maps = compute(&p, &truth, 0, &config).unwrap();
            assert_eq!(maps.label, 1);
            // The box has 64 x 48 pixels.
            let count = (64.0 / maps.stride * 48.0 / maps.stride) as usize;
            assert_eq!(maps.points.len(), count, "stride {}", maps.stride);
            for (((x, y), score), iou) in maps.points.iter().zip(&maps.score).zip(&maps.iou) {
                assert!((16.0..80.0).contains(x) && (16.0..64.0).contains(y));
                assert!((score - 1.0 / (1.0 + (0.05 * x).exp())).abs() < 1e-12);
                assert!((iou - 1.0).abs() < 1e-6);
            }
            let names: Vec<&str> = maps.functions.iter().map(|f| f.name).collect();
            assert_eq!(names, ["DW", "GFL", "VFL", "GFL, ATSS", "VFL, ATSS"]);
            let atss = AdaptiveThreshold { topk: TOPK };
            let atss = atss.point_targets(&p.grid, std::slice::from_ref(&truth));
            let xy = p.grid.points(Kind::Double, Device::Cpu);
            let at = |i: &i64| (xy.double_value(&[*i, 0]), xy.double_value(&[*i, 1]));
            let atss: Vec<(f64, f64)> = atss.positive.iter().map(at).collect();
            for f in &maps.functions {
                assert_eq!((f.positive.len(), f.negative.len()), (count, count), "{}", f.name);
                assert!(f.near > 0.0 && f.near <= 1.0, "{} {}", f.name, f.near);
                let weighted = |at: &(f64, f64)| !f.name.ends_with("ATSS") || atss.contains(at);
                for (at, w) in maps.points.iter().zip(&f.positive) {
                    assert_eq!(*w > 0.0, weighted(at), "{}: {w} at {at:?}", f.name);
                }
                // With an IoU of 1 no point is negative.
                let most = f.negative.iter().copied().fold(0.0, f64::max);
                let is_flat = f.name == "DW" && formula == Formula::Released;
                assert!(most < 1e-6 || is_flat, "{} {most}", f.name);
            }
        }
        let e = compute(&p, &truth, 1, &AssignConfig::default()).unwrap_err().to_string();
        assert!(e.contains("--box 1") && e.contains("1 boxes"), "{e}");
    }
}
