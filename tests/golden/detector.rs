//! Whole detectors: names of parameters, outputs, and training steps.

use std::collections::BTreeSet;
use std::sync::Arc;

use dw::assign::{AssignConfig, Progress};
use dw::config::Config;
use dw::geometry::Grid;
use dw::model::{Backbone, Detector, ModelConfig, Outputs, Params};
use dw::train::input::{Input, Pixels};
use dw::train::schedule::Schedule;
use dw::train::step::Step;
use dw_launch::World;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::case::{Case, close, device, fill, host, max_abs, near, number, within};
use crate::network::{entries, fill_state, gradients, losses, outputs, rule};

/// Compares shape, mean, norm and sampled entries of feature maps. `relative`: tolerance relative
/// to the largest absolute value of each map.
fn digests(what: &str, found: &[Tensor], expected: &Value, relative: f64) -> Result<(), String> {
    let rows = expected.as_array().ok_or_else(|| format!("no digests of {what}"))?;
    for (l, (t, row)) in found.iter().zip(rows).enumerate() {
        let what = format!("{what}[{l}]");
        let shape: Vec<i64> =
            row["shape"].as_array().into_iter().flatten().filter_map(Value::as_i64).collect();
        if t.size() != shape {
            return Err(format!("{what}: expected shape {shape:?}, found {:?}", t.size()));
        }
        let t = host(&t.detach()).to_kind(Kind::Double).contiguous().view([-1]);
        let allowed = relative * max_abs(&t);
        close(
            &format!("norm of {what}"),
            t.norm().double_value(&[]),
            number(&row["l2"]),
            relative,
        )?;
        let (mean, expected) = (t.mean(Kind::Double).double_value(&[]), number(&row["mean"]));
        if !near(mean, expected, allowed) {
            return Err(format!("mean of {what}: expected {expected:e}, found {mean:e}"));
        }
        entries(&what, &t, row, "val", allowed)?;
    }
    Ok(())
}

/// Compares the norm of every tensor after the last update, and of its change since the start.
fn after_updates(
    params: &Params,
    start: &[Tensor],
    expected: &Value,
    kind: Kind,
) -> Result<(), String> {
    let (norm_tolerance, change) =
        if kind == Kind::Double { (1e-9, (1e-6, 1e-14)) } else { (1e-6, (2e-2, 3e-7)) };
    for (e, start) in params.entries.iter().zip(start) {
        let Some(row) = expected.get(&e.name) else {
            if e.trainable {
                return Err(format!("the reference does not list {} after its updates", e.name));
            }
            continue;
        };
        let own = host(&e.tensor.detach()).to_kind(Kind::Double);
        let (norm, delta) = (number(&row["l2_f64"]), number(&row["delta_l2_f64"]));
        close(
            &format!("{} after the updates", e.name),
            own.norm().double_value(&[]),
            norm,
            norm_tolerance,
        )?;
        let moved = (own - host(start).to_kind(Kind::Double)).norm().double_value(&[]);
        if !near(moved, delta, change.0 * delta + change.1 * norm) {
            return Err(format!("change of {}: expected {delta:e}, found {moved:e}", e.name));
        }
    }
    Ok(())
}

/// The backbone and its deformable stages, from the mmdetection settings of the case (`backbone`)
/// or from the depth alone.
fn backbone(case: &Case) -> Result<(Backbone, Vec<i64>), String> {
    let b = &case.json["backbone"];
    let depth = b["depth"].as_i64().unwrap_or_else(|| case.int("backbone_depth"));
    let of = |key: &str, default: i64| b[key].as_i64().unwrap_or(default);
    let kind = match (b["type"].as_str().unwrap_or("ResNet"), depth, of("groups", 1)) {
        ("ResNet", 18, 1) => Backbone::Resnet18,
        ("ResNet", 34, 1) => Backbone::Resnet34,
        ("ResNet", 50, 1) => Backbone::Resnet50,
        ("ResNet", 101, 1) => Backbone::Resnet101,
        ("ResNeXt", 101, 32) if of("base_width", 4) == 4 => Backbone::Resnext101x32x4d,
        ("ResNeXt", 101, 64) if of("base_width", 4) == 4 => Backbone::Resnext101x64x4d,
        _ => return Err(format!("unknown backbone of depth {depth} with {b}")),
    };
    let dcn = &b["dcn"];
    if dcn.is_null() {
        return Ok((kind, vec![]));
    }
    if dcn["type"] != "DCNv2" || dcn["deform_groups"].as_i64().unwrap_or(1) != 1 {
        return Err(format!("unknown deformable convolution {dcn}"));
    }
    let stages = b["stage_with_dcn"].as_array().ok_or("`dcn` without `stage_with_dcn`")?;
    // The first stage computes C2.
    Ok((kind, (2..).zip(stages).filter(|(_, with)| **with == true).map(|(c, _)| c).collect()))
}

/// The network of a detector case.
fn model(case: &Case) -> Result<ModelConfig, String> {
    let (backbone, dcn_stages) = backbone(case)?;
    Ok(ModelConfig {
        backbone,
        dcn_stages,
        dcn_last_conv: case.json["bbox_head"]["dcn_on_last_conv"] == true,
        refine: case.json["reg_refine"] == true,
        frozen_stages: case.int("frozen_stages"),
        ..ModelConfig::default()
    })
}

/// Compares names of parameters with the list `key` of the case, in any order.
fn same_names<'a>(
    case: &Case,
    key: &str,
    names: impl Iterator<Item = &'a str>,
) -> Result<(), String> {
    let listed = case.json[key].as_array().into_iter().flatten().filter_map(Value::as_str);
    let (found, expected): (BTreeSet<&str>, BTreeSet<&str>) = (names.collect(), listed.collect());
    if found == expected {
        return Ok(());
    }
    let differing: Vec<_> = found.symmetric_difference(&expected).take(3).collect();
    Err(format!("`{key}`: other parameters than the reference's, as {differing:?}"))
}

/// Outputs of backbone, FPN and head; returns those of the head.
fn detector_outputs(
    case: &Case,
    detector: &Detector,
    image: &Tensor,
    kind: Kind,
) -> Result<Outputs, String> {
    let expected = &case.json["expected"];
    let (c, p) = detector.features(image, true);
    let feature = if kind == Kind::Double { 1e-9 } else { 1e-5 };
    digests("backbone", &c, &expected["backbone_f64"], feature)?;
    digests("FPN", &p, &expected["fpn_f64"], feature)?;
    for (l, t) in p.iter().enumerate() {
        let name = format!("fpn.{l}.slice");
        if let Some(slice) = case.tensors.get(&name) {
            let channels = slice.size()[1];
            within(&name, &t.narrow(1, 0, channels), slice, 1e-5 * max_abs(slice))?;
        }
    }
    let out = detector.head().forward(&p, detector.offset);
    let tolerance = if kind == Kind::Double { 1e-9 } else { 2e-5 };
    for (name, levels) in
        [("cls_scores", &out.cls), ("bbox_preds", &out.distances), ("centernesses", &out.quality)]
    {
        digests(name, levels, &expected[format!("{name}_f64")], tolerance)?;
    }
    let scale = |levels: &[Tensor]| levels.iter().map(max_abs).fold(0.0, f64::max) * 1e-5;
    outputs(case, &out, [scale(&out.cls), 5e-3, scale(&out.quality)])?;
    Ok(out)
}

/// The learning rates of the reference's `warmup_from_0` trajectory.
fn reference_schedule() -> Schedule {
    Schedule {
        lr: 0.01,
        steps_per_epoch: 7330,
        drops: vec![8, 11],
        decay: 0.1,
        warmup_steps: 1000,
        warmup_ratio: 0.001,
    }
}

/// Compares the loss terms of a later step, with a tolerance relative to the total loss. Rounding
/// errors grow about sixfold per step (inputs of ReLUs change sign), while single terms become
/// small.
fn later_losses(
    step: usize,
    terms: &[(&str, f64)],
    expected: &Value,
    relative: f64,
) -> Result<(), String> {
    let total = number(&expected["loss"]);
    for (name, found) in terms {
        let error = (found - number(&expected[*name])).abs();
        if error.is_nan() || error > relative * total {
            return Err(format!(
                "step {step} {name}: expected {}, found {found:e} (difference {error:e})",
                expected[*name]
            ));
        }
    }
    Ok(())
}

/// Training steps from the reference's start: losses, gradients of the first step, learning rates.
/// `out`: the outputs of the first step.
fn trajectory(
    case: &Case,
    step: &mut Step,
    image: &Tensor,
    out: Outputs,
    kind: Kind,
) -> Result<(), String> {
    let deep = model(case)?.backbone.name().contains("101");
    let (first, later, gradient) = match kind {
        Kind::Double => (1e-9, 1e-8, 1e-6),
        _ if deep => (1e-5, 1e-4, 1e-2),
        _ => (1e-5, 1e-4, 5e-3),
    };
    let expected = &case.json["expected"];
    let steps = &expected["trajectories"]["warmup_from_0"]["steps_f64"];
    let schedule = reference_schedule();
    let mut out = Some(out);
    let images = Pixels::Normalised(image);
    for (n, row) in steps.as_array().ok_or("no trajectory")?.iter().enumerate() {
        let predicted = out.take().unwrap_or_else(|| step.forward(images));
        let targets = step.matcher().targets(&Grid::centers(&predicted.sizes()), &case.truth());
        let input = Input { images, targets: &targets, at: Progress::default() };
        let reduced = step.loss(&predicted, &input, None, false).map_err(|e| e.to_string())?;
        step.backward(&reduced, &[]).map_err(|e| e.to_string())?;
        let loss = reduced.read().map_err(|e| e.to_string())?;
        if n == 0 {
            losses("step 0", &loss.terms, row, first)?;
            gradients(&step.detector.params, &expected["param_grads"], gradient)?;
        }
        later_losses(n, &loss.terms, row, later)?;
        close("lr", schedule.lr(n), number(&row["lr"]), 1e-15)?;
        let _ = step.update(&reduced, schedule.lr(n)).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// A whole detector: names, outputs, and several training steps.
pub fn check(case: &Case, kind: Kind) -> Result<(), String> {
    let config = model(case)?;
    let mut net = Detector::new(&config, case.int("num_classes") as usize, kind, device());
    let assign = AssignConfig::Dw(rule(case));
    let strategy = assign.build(&mut net.params, case.int("num_classes"));
    fill_state(case, &mut net.params)?;
    let trainable = net.params.entries.iter().filter(|e| e.trainable);
    same_names(case, "trainable", trainable.clone().map(|e| e.name.as_str()))?;
    let without_decay = trainable.filter(|e| !e.decay);
    same_names(case, "zero_weight_decay", without_decay.map(|e| e.name.as_str()))?;
    let config = Config { model: config, assign, ..Config::default() };
    let mut step = Step::new(net, strategy, &config.train, &Arc::new(World::solo()))
        .map_err(|e| e.to_string())?;
    let start: Vec<Tensor> =
        step.detector.params.entries.iter().map(|e| e.tensor.detach().copy()).collect();
    let [h, w] = [0, 1].map(|i| case.json["image_hw"][i].as_i64().unwrap_or(0));
    let shape = [case.int("batch"), 3, h, w];
    let image = fill("image", case.seed(), &shape, &json!(["affine", -2.0, 4.0])).to_kind(kind);
    let image = dw::device::upload(&image, device(), kind);
    let out = detector_outputs(case, &step.detector, &image, kind)?;
    trajectory(case, &mut step, &image, out, kind)?;
    let after = &case.json["expected"]["trajectories"]["warmup_from_0"]["params_after"];
    after_updates(&step.detector.params, &start, after, kind)
}
