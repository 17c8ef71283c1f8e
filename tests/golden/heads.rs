//! Heads of systems other than DW, or parts of them: outputs, losses and gradients of every
//! parameter and feature.

use std::collections::BTreeMap;

use dw::assign::{AssignConfig, GflConfig, TalConfig};
use dw::geometry::{STRIDES, decode, distances_of_bins, level_points};
use dw::model::heads::quality::QualityPredictor;
use dw::model::{ClassOutput, ModelConfig, Outputs, Params, heads};
use tch::{Kind, Tensor};

use crate::case::{Case, device, group_within, number};
use crate::lab::{assigned, gradients, losses, tolerance};
use crate::network;

/// GFLv2's quality predictor: two convolutions on given features, the predictor, and the loss.
pub fn quality_predictor(case: &Case, kind: Kind) -> Result<(), String> {
    let mut params = Params::new(kind, device());
    let predictor = QualityPredictor::new(&mut params);
    let mut parameters: BTreeMap<String, Tensor> = BTreeMap::new();
    for name in case.tensors.keys().filter_map(|k| k.strip_prefix("param.")) {
        let value = case.tensors[&format!("param.{name}")].to_kind(kind).to_device(device());
        let known = params.entries.iter().find(|e| e.name == format!("bbox_head.{name}"));
        let tensor = match known {
            Some(e) => {
                tch::no_grad(|| e.tensor.shallow_clone().copy_(&value));
                e.tensor.shallow_clone()
            }
            None => value.set_requires_grad(true),
        };
        parameters.insert(name.to_owned(), tensor);
    }
    let of = |name: &str| &parameters[name];
    let features: Vec<Tensor> =
        case.levels("input.feat", kind).into_iter().map(|t| t.set_requires_grad(true)).collect();
    let conv = |x: &Tensor, name: &str| {
        let bias = Some(of(&format!("{name}.bias")));
        x.conv2d(of(&format!("{name}.weight")), bias, [1, 1], [1, 1], [1, 1], 1)
    };
    let bins: Vec<Tensor> = features
        .iter()
        .enumerate()
        .map(|(level, x)| conv(x, "gfl_reg") * of(&format!("scales.{level}.scale")))
        .collect();
    let score =
        |(x, bins): (&Tensor, &Tensor)| conv(x, "gfl_cls").sigmoid() * predictor.forward(bins);
    let outputs = Outputs {
        cls: features.iter().zip(&bins).map(score).collect(),
        cls_is: ClassOutput::Probability,
        first: vec![],
        distances: bins.iter().zip(STRIDES).map(|(t, s)| distances_of_bins(t, s)).collect(),
        quality: vec![],
        bins,
        offset: number(&case.json["prior_offset"]),
    };
    let found = losses(case, kind, &AssignConfig::Gfl(GflConfig::default()), &outputs)?;
    assigned(case, &found.targets)?;
    for (name, found) in [("out.cls_scores", &outputs.cls), ("out.bbox_preds", &outputs.bins)] {
        let found = found.iter().map(Tensor::detach);
        let pairs: Vec<_> = found.zip(case.levels(name, kind)).collect();
        group_within(name, &pairs, if kind == Kind::Double { 1e-7 } else { 1e-5 })?;
    }
    gradients(case, kind, "feat", &features)?;
    for (name, t) in &parameters {
        let expected = case.tensors[&format!("grad.param.{name}")].shallow_clone();
        group_within(&format!("grad.{name}"), &[(t.grad(), expected)], tolerance(case, kind))?;
    }
    Ok(())
}

/// TOOD's head alone: outputs, losses and gradients of every parameter and feature.
pub fn task_aligned_head(case: &Case, kind: Kind) -> Result<(), String> {
    let mut params = Params::new(kind, device());
    let config = ModelConfig { channels: case.int("feat_channels"), ..ModelConfig::default() };
    let head = heads::tood::Head::new(&mut params, &config, case.int("num_classes"));
    network::fill_state(case, &mut params)?;
    let features = network::features(case, kind);
    let out = head.forward(&features, number(&case.json["prior_offset"]));
    let tolerance = if kind == Kind::Double { 1e-6 } else { 1e-4 };
    let points = |s: i64, size: &[i64]| {
        let points = level_points(size[2], size[3], s, 0.0, kind, device());
        points.view([1, size[2], size[3], 2])
    };
    let boxes = out.distances.iter().zip(STRIDES).map(|(t, s)| {
        let boxes = decode(&points(s, &t.size()), &t.detach().permute([0, 2, 3, 1]));
        (boxes / s as f64).permute([0, 3, 1, 2])
    });
    let boxes: Vec<_> = boxes.zip(case.levels("out.bbox_preds", kind)).collect();
    group_within("boxes", &boxes, tolerance)?;
    let scores = out.cls.iter().map(Tensor::detach);
    let scores: Vec<_> = scores.zip(case.levels("out.cls_scores", kind)).collect();
    group_within("scores", &scores, tolerance)?;
    losses(case, kind, &AssignConfig::Tal(TalConfig::default()), &out)?;
    let relative = if kind == Kind::Double { 1e-6 } else { 1e-3 };
    network::gradients(&params, &case.json["expected"]["param_grads"], relative)?;
    network::feature_gradients(case, &features, relative)
}
