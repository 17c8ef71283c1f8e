//! The head of a detector: outputs, losses and gradients of every parameter. Also the comparisons
//! shared by heads and whole detectors.

use std::collections::BTreeMap;

use dw::assign::{AssignConfig, DwConfig};
use dw::model::params::Role;
use dw::model::{ModelConfig, Outputs, Params, heads};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::case::{Case, close, device, fill, host, max_abs, near, number, within};
use crate::loss;

/// Fills every tensor of a network by the rules of the case. Names and shapes must be those of the
/// case.
pub fn fill_state(case: &Case, params: &mut Params) -> Result<(), String> {
    let rules = case.json["state"].as_array().ok_or("no `state`")?;
    let names: BTreeMap<&str, &Value> =
        rules.iter().filter_map(|r| Some((r["name"].as_str()?, r))).collect();
    if let Some(e) = params.entries.iter().find(|e| !names.contains_key(e.name.as_str())) {
        return Err(format!("`{}` is not a name of the reference", e.name));
    }
    if names.len() != params.entries.len() {
        let own: Vec<&str> = params.entries.iter().map(|e| e.name.as_str()).collect();
        let missing: Vec<_> = names.keys().filter(|n| !own.contains(n)).collect();
        return Err(format!("the network lacks {missing:?}"));
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

/// Settings of the loss.
pub fn rule(case: &Case) -> DwConfig {
    use dw::assign::Prior;
    if case.json["soft_prior"].as_bool().unwrap_or(true) {
        DwConfig::default()
    } else {
        DwConfig { prior: Prior::Threshold, prior_value: 0.3, ..DwConfig::default() }
    }
}

/// Compares loss terms by name.
pub fn losses(
    name: &str,
    found: &[(&str, f64)],
    expected: &Value,
    relative: f64,
) -> Result<(), String> {
    found.iter().try_for_each(|(term, v)| {
        close(&format!("{name} {term}"), *v, number(&expected[*term]), relative)
    })
}

/// Compares the norm and sampled entries of a gradient, with a tolerance relative to the norm.
fn gradient(what: &str, found: &Tensor, expected: &Value, relative: f64) -> Result<(), String> {
    let norm = number(&expected["l2_f64"]);
    let found = host(found).to_kind(Kind::Double).contiguous().view([-1]);
    let own = found.norm().double_value(&[]);
    if !near(own, norm, relative * norm + 1e-9) {
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
pub fn entries(
    what: &str,
    found: &Tensor,
    expected: &Value,
    values: &str,
    absolute: f64,
) -> Result<(), String> {
    let list = |key: &str| expected[key].as_array().cloned().unwrap_or_default();
    let (indices, values) = (list("idx"), list(values));
    if indices.is_empty() || indices.len() != values.len() {
        return Err(format!("{what}: the case has no entries to compare"));
    }
    for (i, value) in indices.iter().zip(values) {
        let (i, value) = (i.as_i64().unwrap_or(-1), number(&value));
        let own = found.double_value(&[i]);
        if !near(own, value, absolute) {
            return Err(format!(
                "{what}, entry {i}: expected {value:e}, found {own:e}, \
                 allowed difference {absolute:e}"
            ));
        }
    }
    Ok(())
}

/// Compares the gradient of every parameter, and the norm of all of them as one vector.
pub fn gradients(params: &Params, expected: &Value, relative: f64) -> Result<(), String> {
    let (mut found_all, mut expected_all) = (0.0, 0.0);
    for e in params.entries.iter().filter(|e| e.role == Role::Parameter) {
        let row = expected
            .get(&e.name)
            .ok_or_else(|| format!("the reference has no gradient of {}", e.name))?;
        let grad = if e.tensor.grad().defined() { e.tensor.grad() } else { e.tensor.zeros_like() };
        if row.is_null() {
            if e.trainable || max_abs(&grad) > 0.0 {
                return Err(format!("{} has a gradient, in the reference it has none", e.name));
            }
            continue;
        }
        gradient(&e.name, &grad, row, relative)?;
        found_all += grad.norm().double_value(&[]).powi(2);
        expected_all += number(&row["l2_f64"]).powi(2);
    }
    close("gradient of all parameters", found_all.sqrt(), expected_all.sqrt(), relative.min(5e-3))
}

/// Compares the outputs of the head, with an absolute tolerance for each kind of output.
pub fn outputs(case: &Case, out: &Outputs, tolerances: [f64; 3]) -> Result<(), String> {
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

/// The tensor `mean` or `sigma` of the centre prior.
fn prior(params: &Params, name: &str) -> Result<Tensor, String> {
    let name = format!("bbox_head.center_prior.{name}");
    params
        .entries
        .iter()
        .find(|e| e.name == name)
        .map(|e| e.tensor.shallow_clone())
        .ok_or("no centre prior".into())
}

/// Features P3 to P7 of a case that tests only a head.
pub fn features(case: &Case, kind: Kind) -> Vec<Tensor> {
    let size = |l: usize, i: usize| case.json["level_hw"][l][i].as_i64().unwrap_or(0);
    let level = |l| {
        let shape = [case.int("batch"), case.int("in_channels"), size(l, 0), size(l, 1)];
        fill(&format!("feat.{l}"), case.seed(), &shape, &json!(["affine", -2.0, 4.0]))
            .to_kind(kind)
            .set_requires_grad(true)
    };
    (0..5).map(level).collect()
}

/// Compares the gradients of the features.
pub fn feature_gradients(case: &Case, features: &[Tensor], relative: f64) -> Result<(), String> {
    features.iter().enumerate().try_for_each(|(l, f)| {
        let expected = &case.json["expected"]["feat_grads"][l];
        gradient(&format!("feature {l}"), &f.grad(), expected, relative)
    })
}

/// The head alone: outputs, losses and gradients.
pub fn head(case: &Case, kind: Kind) -> Result<(), String> {
    let refine = case.json["reg_refine"].as_bool().unwrap_or(false);
    let mut params = Params::new(kind, device());
    let config =
        ModelConfig { channels: case.int("feat_channels"), refine, ..ModelConfig::default() };
    let head = heads::fcos::Head::new(&mut params, &config, case.int("num_classes"));
    let rule = rule(case);
    let _ = AssignConfig::Dw(rule.clone()).build(&mut params, case.int("num_classes"));
    fill_state(case, &mut params)?;
    let features = features(case, kind);
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
    feature_gradients(case, &features, gradient)
}
