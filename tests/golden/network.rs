//! Head and whole detector: outputs, losses, gradients of every parameter, five training steps.

use std::sync::Arc;

use dw::assign::{AssignConfig, DwConfig, Progress};
use dw::boxes::Grid;
use dw::config::Config;
use dw::model::params::Role;
use dw::model::{Backbone, Detector, ModelConfig, Outputs, Params, head};
use dw::train::schedule::Schedule;
use dw::train::step::Step;
use dw_launch::World;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::case::{Case, close, device, fill, host, max_abs, number, within};
use crate::loss;

/// Fills every parameter by the case's rules; names must be exactly the case's.
fn fill_state(case: &Case, params: &mut Params) -> Result<(), String> {
    let rules = case.json["state"].as_array().ok_or("no `state`")?;
    let names: std::collections::BTreeMap<&str, &Value> =
        rules.iter().filter_map(|r| Some((r["name"].as_str()?, r))).collect();
    if let Some(e) = params.entries.iter().find(|e| !names.contains_key(e.name.as_str())) {
        return Err(format!("`{}` is not a name of the reference", e.name));
    }
    if names.len() != params.entries.len() {
        let own: Vec<&str> = params.entries.iter().map(|e| e.name.as_str()).collect();
        let missing: Vec<_> = names.keys().filter(|n| !own.contains(n)).collect();
        return Err(format!("the reference also has {missing:?}"));
    }
    for e in &params.entries {
        let shape: Vec<i64> = names[e.name.as_str()]["shape"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_i64)
            .collect();
        if shape != e.tensor.size() {
            return Err(format!(
                "`{}`: expected shape {shape:?}, found {:?}",
                e.name,
                e.tensor.size()
            ));
        }
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

fn losses(
    name: &str,
    found: &[(&str, f64)],
    expected: &Value,
    relative: f64,
) -> Result<(), String> {
    found.iter().try_for_each(|(term, v)| {
        close(&format!("{name} {term}"), *v, number(&expected[*term]), relative)
    })
}

/// Norm and sampled entries (a share of the norm) of a gradient. A gradient of the reference that is exactly 0 must be 0.
fn gradient(what: &str, found: &Tensor, expected: &Value, relative: f64) -> Result<(), String> {
    let norm = number(&expected["l2_f64"]);
    let found = host(found).to_kind(Kind::Double).contiguous().view([-1]);
    let own = found.norm().double_value(&[]);
    if (own - norm).abs() > relative * norm + 1e-9 {
        return Err(format!("gradient of {what}: expected norm {norm:e}, found {own:e}"));
    }
    entries(
        &format!("gradient of {what}"),
        &found,
        expected,
        "val_f64",
        4.0 * relative * norm + 1e-9,
    )
}

/// Compares the sampled entries `idx` of a flat tensor.
fn entries(
    what: &str,
    found: &Tensor,
    expected: &Value,
    values: &str,
    absolute: f64,
) -> Result<(), String> {
    let list = |key: &str| expected[key].as_array().cloned().unwrap_or_default();
    for (i, value) in list("idx").iter().zip(list(values)) {
        let (i, value) = (i.as_i64().unwrap_or(-1), number(&value));
        let own = found.double_value(&[i]);
        if (own - value).abs() > absolute {
            return Err(format!(
                "{what}, entry {i}: expected {value:e}, found {own:e}, allowed difference {absolute:e}"
            ));
        }
    }
    Ok(())
}

/// Every parameter's gradient, and all of them as one vector.
fn gradients(params: &Params, expected: &Value, relative: f64) -> Result<(), String> {
    let (mut found_all, mut expected_all) = (0.0, 0.0);
    for e in params.entries.iter().filter(|e| e.role == Role::Parameter) {
        let row = expected
            .get(&e.name)
            .ok_or_else(|| format!("the reference has no gradient of {}", e.name))?;
        let grad = if e.tensor.grad().defined() { e.tensor.grad() } else { e.tensor.zeros_like() };
        if row.is_null() {
            if e.trainable || max_abs(&grad) > 0.0 {
                return Err(format!("{} has a gradient, the reference's has none", e.name));
            }
            continue;
        }
        gradient(&e.name, &grad, row, relative)?;
        found_all += grad.norm().double_value(&[]).powi(2);
        expected_all += number(&row["l2_f64"]).powi(2);
    }
    close("gradient of all parameters", found_all.sqrt(), expected_all.sqrt(), relative.min(5e-3))
}

/// Shape, mean, norm and sampled entries of feature maps; `relative` to each map's largest number.
fn digests(what: &str, found: &[Tensor], expected: &Value, relative: f64) -> Result<(), String> {
    let rows = expected.as_array().ok_or_else(|| format!("no digests of {what}"))?;
    // The reference lists as many levels as it has digests for.
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
        if (mean - expected).abs() > allowed {
            return Err(format!("mean of {what}: expected {expected:e}, found {mean:e}"));
        }
        entries(&what, &t, row, "val", allowed)?;
    }
    Ok(())
}

/// Norm of every tensor of the state after the last update, and how far it went.
fn after_updates(
    params: &Params,
    start: &[Tensor],
    expected: &Value,
    kind: Kind,
) -> Result<(), String> {
    let (norm_tolerance, way) =
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
        if (moved - delta).abs() > way.0 * delta + way.1 * norm {
            return Err(format!("way of {}: expected {delta:e}, found {moved:e}", e.name));
        }
    }
    Ok(())
}

fn outputs(case: &Case, out: &Outputs, tolerances: [f64; 3]) -> Result<(), String> {
    let groups =
        [("cls_scores", &out.cls), ("bbox_preds", &out.distances), ("centernesses", &out.quality)];
    for ((name, levels), tolerance) in groups.into_iter().zip(tolerances) {
        for (l, t) in levels.iter().enumerate() {
            within(
                &format!("out.{name}.{l}"),
                t,
                &case.tensors[&format!("out.{name}.{l}")],
                tolerance,
            )?;
        }
    }
    Ok(())
}

/// A tensor of the centre prior.
fn prior(params: &Params, name: &str) -> Result<Tensor, String> {
    let name = format!("bbox_head.center_prior.{name}");
    params
        .entries
        .iter()
        .find(|e| e.name == name)
        .map(|e| e.tensor.shallow_clone())
        .ok_or("no centre prior".into())
}

pub fn head(case: &Case, kind: Kind) -> Result<(), String> {
    let refine = case.json["reg_refine"].as_bool().unwrap_or(false);
    let mut params = Params::new(kind, device());
    let config =
        ModelConfig { channels: case.int("feat_channels"), refine, ..ModelConfig::default() };
    let head = head::Head::new(&mut params, &config, case.int("num_classes"));
    let rule = rule(case);
    let _ = AssignConfig::Dw(rule.clone()).build(&mut params, case.int("num_classes"));
    fill_state(case, &mut params)?;
    let sizes: Vec<[i64; 2]> =
        (0..5).map(|l| [0, 1].map(|i| case.json["level_hw"][l][i].as_i64().unwrap_or(0))).collect();
    let features: Vec<Tensor> = sizes
        .iter()
        .enumerate()
        .map(|(l, [h, w])| {
            let shape = [case.int("batch"), case.int("in_channels"), *h, *w];
            fill(&format!("feat.{l}"), case.seed(), &shape, &json!(["affine", -2.0, 4.0]))
                .to_kind(kind)
                .set_requires_grad(true)
        })
        .collect();
    let out = head.forward(&features, 0.5);
    let boxes = if refine { 2e-3 } else { 5e-4 };
    outputs(
        case,
        &out,
        if kind == Kind::Double { [1e-5, 1e-4, 1e-5] } else { [3e-5, boxes, 3e-5] },
    )?;
    let run = loss::run(case, out, &rule, (&prior(&params, "mean")?, &prior(&params, "sigma")?))?;
    let (scalar, gradient) = if kind == Kind::Double { (1e-9, 1e-8) } else { (1e-5, 1e-3) };
    losses("head", &run.loss.terms, &case.json["expected"]["f64"], scalar)?;
    gradients(&params, &case.json["expected"]["param_grads"], gradient)?;
    for (l, f) in features.iter().enumerate() {
        self::gradient(
            &format!("feature {l}"),
            &f.grad(),
            &case.json["expected"]["feat_grads"][l],
            gradient,
        )?;
    }
    Ok(())
}

/// The backbone and its deformable stages, from mmdetection's terms (`backbone`) or the depth alone.
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
        _ => return Err(format!("no backbone of depth {depth} with {b}")),
    };
    let dcn = &b["dcn"];
    if dcn.is_null() {
        return Ok((kind, vec![]));
    }
    if dcn["type"] != "DCNv2" || dcn["deform_groups"].as_i64().unwrap_or(1) != 1 {
        return Err(format!("no deformable convolution of the kind {dcn}"));
    }
    let stages = b["stage_with_dcn"].as_array().ok_or("`dcn` without `stage_with_dcn`")?;
    // The first stage makes C2.
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

pub fn detector(case: &Case, kind: Kind) -> Result<(), String> {
    let config = model(case)?;
    let deep = config.backbone.name().contains("101");
    let mut net = Detector::new(&config, case.int("num_classes") as usize, kind, device());
    let assign = AssignConfig::Dw(rule(case));
    let strategy = assign.build(&mut net.params, case.int("num_classes"));
    fill_state(case, &mut net.params)?;
    let names = |key: &str| -> Vec<&str> {
        case.json[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    };
    let mut own: Vec<&str> =
        net.params.entries.iter().filter(|e| e.trainable).map(|e| e.name.as_str()).collect();
    let mut expected = names("trainable");
    own.sort_unstable();
    expected.sort_unstable();
    if own != expected {
        return Err("the trained parameters are not the reference's".into());
    }
    let mut own: Vec<&str> = net
        .params
        .entries
        .iter()
        .filter(|e| e.trainable && !e.decay)
        .map(|e| e.name.as_str())
        .collect();
    let mut expected = names("zero_weight_decay");
    own.sort_unstable();
    expected.sort_unstable();
    if own != expected {
        return Err("the parameters without weight decay are not the reference's".into());
    }
    let config = Config { model: config, assign, ..Config::default() };
    let mut step =
        Step::new(net, strategy, &config, &Arc::new(World::solo())).map_err(|e| e.to_string())?;
    let start: Vec<Tensor> =
        step.detector.params.entries.iter().map(|e| e.tensor.detach().copy()).collect();
    let (h, w) = (
        case.json["image_hw"][0].as_i64().unwrap_or(0),
        case.json["image_hw"][1].as_i64().unwrap_or(0),
    );
    let image =
        fill("image", case.seed(), &[case.int("batch"), 3, h, w], &json!(["affine", -2.0, 4.0]))
            .to_kind(kind);
    let image = dw::device::upload(&image, device(), kind);

    let expected = &case.json["expected"];
    let (c, p) = step.detector.features(&image, true);
    let feature = if kind == Kind::Double { 1e-9 } else { 1e-5 };
    digests("backbone", &c, &expected["backbone_f64"], feature)?;
    digests("FPN", &p, &expected["fpn_f64"], feature)?;
    for (l, t) in p.iter().enumerate() {
        if let Some(slice) = case.tensors.get(&format!("fpn.{l}.slice")) {
            within(
                &format!("fpn.{l}.slice"),
                &t.narrow(1, 0, slice.size()[1]),
                slice,
                1e-5 * max_abs(slice),
            )?;
        }
    }
    let out = step.detector.head().forward(&p, step.detector.offset);
    for (name, levels) in
        [("cls_scores", &out.cls), ("bbox_preds", &out.distances), ("centernesses", &out.quality)]
    {
        digests(
            name,
            levels,
            &expected[format!("{name}_f64")],
            if kind == Kind::Double { 1e-9 } else { 2e-5 },
        )?;
    }
    let scale = |levels: &[Tensor]| levels.iter().map(max_abs).fold(0.0, f64::max) * 1e-5;
    let tolerances = [scale(&out.cls), 5e-3, scale(&out.quality)];
    outputs(case, &out, tolerances)?;
    let trajectory = &case.json["expected"]["trajectories"]["warmup_from_0"];
    let steps = &trajectory["steps_f64"];
    let schedule = Schedule {
        lr: 0.01,
        steps_per_epoch: 7330,
        drops: vec![8, 11],
        decay: 0.1,
        warmup_steps: 1000,
        warmup_ratio: 0.001,
    };
    let (first, later, gradient) = match kind {
        Kind::Double => (1e-9, 1e-8, 1e-6),
        _ if deep => (1e-5, 1e-4, 1e-2),
        _ => (1e-5, 1e-4, 5e-3),
    };
    let mut out = Some(out);
    for (n, expected) in steps.as_array().ok_or("no trajectory")?.iter().enumerate() {
        let predicted = out.take().unwrap_or_else(|| step.forward(&image));
        let targets = step.matcher().targets(&Grid::centers(&predicted.sizes()), &case.truth());
        let loss = step
            .loss(&predicted, &targets, &Progress::default(), false)
            .map_err(|e| e.to_string())?;
        step.backward(&loss).map_err(|e| e.to_string())?;
        if n == 0 {
            losses("step 0", &loss.terms, expected, first)?;
            gradients(&step.detector.params, &case.json["expected"]["param_grads"], gradient)?;
        }
        // Rounding grows about sixfold a step (ReLUs that flip), while single terms shrink to a fraction: measured
        // against the whole loss.
        let total = number(&expected["loss"]);
        for (name, found) in &loss.terms {
            let off = (found - number(&expected[*name])).abs();
            if off.is_nan() || off > later * total {
                return Err(format!(
                    "step {n} {name}: expected {}, found {found:e} (off by {off:e})",
                    expected[*name]
                ));
            }
        }
        close("lr", schedule.lr(n), number(&expected["lr"]), 1e-15)?;
        step.update(schedule.lr(n)).map_err(|e| e.to_string())?;
    }
    after_updates(&step.detector.params, &start, &trajectory["params_after"], kind)
}
