//! Head and whole detector: outputs, losses, gradients of every parameter, five training steps.

use dw::assign::DwConfig;
use dw::model::{Architecture, Backbone, Detector, NormKind, Outputs, Params, head};
use dw::train::flat::Flat;
use dw::train::schedule::Schedule;
use dw::train::sgd;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::case::{Case, close, fill, max_abs, number, within};
use crate::loss;

/// Fills every parameter by the case's rules; names must be exactly the case's.
fn fill_state(case: &Case, params: &mut Params) -> Result<(), String> {
    let rules = case.json["state"].as_array().ok_or("no `state`")?;
    let names: std::collections::BTreeMap<&str, &Value> = rules.iter().filter_map(|r| Some((r["name"].as_str()?, r))).collect();
    if let Some(e) = params.entries.iter().find(|e| !names.contains_key(e.name.as_str())) {
        return Err(format!("`{}` is not a name of the reference", e.name));
    }
    if names.len() != params.entries.len() {
        let own: Vec<&str> = params.entries.iter().map(|e| e.name.as_str()).collect();
        let missing: Vec<_> = names.keys().filter(|n| !own.contains(n)).collect();
        return Err(format!("the reference also has {missing:?}"));
    }
    tch::no_grad(|| {
        for e in &mut params.entries {
            let rule = &names[e.name.as_str()]["rule"];
            let value = fill(&e.name, case.seed(), &e.tensor.size(), rule);
            e.tensor.copy_(&value);
        }
    });
    Ok(())
}

fn rule(case: &Case) -> DwConfig {
    use dw::assign::Prior;
    if case.json["soft_prior"].as_bool().unwrap_or(true) {
        DwConfig::default()
    } else {
        DwConfig { prior: Prior::Threshold, prior_value: 0.3, ..DwConfig::default() }
    }
}

fn losses(name: &str, found: &[(&str, f64)], expected: &Value, relative: f64) -> Result<(), String> {
    found.iter().try_for_each(|(term, v)| close(&format!("{name} {term}"), *v, number(&expected[*term]), relative))
}

/// L2 norms of all parameters' gradients.
fn gradients(params: &Params, expected: &Value, relative: f64) -> Result<(), String> {
    let (mut found_all, mut expected_all) = (0.0, 0.0);
    for e in params.entries.iter().filter(|e| !e.buffer) {
        let Some(norm) = expected[&e.name]["l2_f64"].as_f64() else { continue };
        let found = if e.tensor.grad().defined() { e.tensor.grad().norm().double_value(&[]) } else { 0.0 };
        let off = (found - norm).abs();
        if off > relative * norm + 1e-9 {
            return Err(format!("gradient of {}: expected norm {norm:e}, found {found:e}", e.name));
        }
        found_all += found * found;
        expected_all += norm * norm;
    }
    close("gradient of all parameters", found_all.sqrt(), expected_all.sqrt(), relative)
}

fn outputs(case: &Case, out: &Outputs, tolerances: [f64; 3]) -> Result<(), String> {
    let groups = [("cls_scores", &out.cls), ("bbox_preds", &out.distances), ("centernesses", &out.objectness)];
    for ((name, levels), tolerance) in groups.into_iter().zip(tolerances) {
        for (l, t) in levels.iter().enumerate() {
            within(&format!("out.{name}.{l}"), t, &case.tensors[&format!("out.{name}.{l}")], tolerance)?;
        }
    }
    Ok(())
}

pub fn head(case: &Case, kind: Kind) -> Result<(), String> {
    let refine = case.json["reg_refine"].as_bool().unwrap_or(false);
    let mut params = Params::new(kind, Device::Cpu);
    let head = head::Head::new(&mut params, case.int("num_classes"), case.int("feat_channels"), refine);
    fill_state(case, &mut params)?;
    let sizes: Vec<[i64; 2]> = (0..5).map(|l| [0, 1].map(|i| case.json["level_hw"][l][i].as_i64().unwrap_or(0))).collect();
    let features: Vec<Tensor> = sizes
        .iter()
        .enumerate()
        .map(|(l, [h, w])| {
            let shape = [case.int("batch"), case.int("in_channels"), *h, *w];
            fill(&format!("feat.{l}"), case.seed(), &shape, &json!(["affine", -2.0, 4.0])).to_kind(kind).set_requires_grad(true)
        })
        .collect();
    let out = head.forward(&features);
    let boxes = if refine { 2e-3 } else { 5e-4 };
    outputs(case, &out, if kind == Kind::Double { [1e-5, 1e-4, 1e-5] } else { [3e-5, boxes, 3e-5] })?;
    let run = loss::run(case, out, &rule(case), (&head.prior.0, &head.prior.1))?;
    let (scalar, gradient) = if kind == Kind::Double { (1e-9, 1e-8) } else { (1e-5, 1e-3) };
    losses("head", &run.loss.terms, &case.json["expected"]["f64"], scalar)?;
    gradients(&params, &case.json["expected"]["param_grads"], gradient)?;
    for (l, f) in features.iter().enumerate() {
        let expected = number(&case.json["expected"]["feat_grads"][l]["l2_f64"]);
        close(&format!("gradient of feature {l}"), f.grad().norm().double_value(&[]), expected, gradient)?;
    }
    Ok(())
}

pub fn detector(case: &Case, kind: Kind) -> Result<(), String> {
    let architecture = Architecture {
        backbone: if case.int("backbone_depth") == 101 { Backbone::Resnet101 } else { Backbone::Resnet50 },
        width: 1.0,
        channels: 256,
        norm: NormKind::FrozenBn,
        frozen_stages: case.int("frozen_stages"),
        refine: case.json["reg_refine"].as_bool().unwrap_or(false),
        classes: case.int("num_classes"),
    };
    let mut net = Detector::new(&architecture, kind, Device::Cpu);
    fill_state(case, &mut net.params)?;
    let names = |key: &str| -> Vec<&str> { case.json[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect() };
    let mut own: Vec<&str> = net.params.entries.iter().filter(|e| e.trainable).map(|e| e.name.as_str()).collect();
    let mut expected = names("trainable");
    own.sort_unstable();
    expected.sort_unstable();
    if own != expected {
        return Err("the trained parameters are not the reference's".into());
    }
    let mut own: Vec<&str> = net.params.entries.iter().filter(|e| e.trainable && !e.decay).map(|e| e.name.as_str()).collect();
    let mut expected = names("zero_weight_decay");
    own.sort_unstable();
    expected.sort_unstable();
    if own != expected {
        return Err("the parameters without weight decay are not the reference's".into());
    }
    let mut flat = Flat::new(&mut net.params);
    let start = flat.params.copy();
    let (h, w) = (case.json["image_hw"][0].as_i64().unwrap_or(0), case.json["image_hw"][1].as_i64().unwrap_or(0));
    let image = fill("image", case.seed(), &[case.int("batch"), 3, h, w], &json!(["affine", -2.0, 4.0])).to_kind(kind);
    let image = dw::train::to_device(&image, Device::Cpu);

    let out = net.forward(&image, true);
    let scale = |levels: &[Tensor]| levels.iter().map(max_abs).fold(0.0, f64::max) * 1e-5;
    let tolerances = [scale(&out.cls), 5e-3, scale(&out.objectness)];
    outputs(case, &out, tolerances)?;
    let trajectory = &case.json["expected"]["trajectories"]["warmup_from_0"];
    let steps = if kind == Kind::Double { &trajectory["steps_f64"] } else { &trajectory["steps_f32"] };
    let schedule = Schedule { lr: 0.01, steps_per_epoch: 7330, drops: vec![8, 11], decay: 0.1, warmup_steps: 1000, warmup_ratio: 0.001 };
    let (first, later, gradient) = if kind == Kind::Double { (1e-9, 1e-8, 1e-6) } else { (1e-5, 1e-4, 1e-2) };
    let mut out = Some(out);
    for (n, expected) in steps.as_array().ok_or("no trajectory")?.iter().enumerate() {
        let predicted = out.take().unwrap_or_else(|| net.forward(&image, true));
        let prior = &net.head().prior;
        let run = loss::run(case, predicted, &rule(case), (&prior.0, &prior.1))?;
        losses(&format!("step {n}"), &run.loss.terms, expected, if n == 0 { first } else { later })?;
        if n == 0 {
            gradients(&net.params, &case.json["expected"]["param_grads"], gradient)?;
        }
        close("lr", schedule.lr(n), number(&expected["lr"]), 1e-15)?;
        sgd::step(&mut flat, schedule.lr(n), 0.9, 1e-4, 1.0);
    }
    let moved = (&flat.params - start).norm().double_value(&[]);
    let after = trajectory["params_after"].as_object().ok_or("no `params_after`")?;
    let sum = |key: &str| after.values().map(|v| number(&v[key]).powi(2)).sum::<f64>().sqrt();
    let key = if after.values().next().is_some_and(|v| v.get("delta_l2").is_some()) { "delta_l2" } else { "delta_l2_f64" };
    close("way of all parameters after five steps", moved, sum(key), 2e-2)
}
