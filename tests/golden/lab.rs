//! Systems other than DW (kind `lab`): losses, gradients and assignments, compared with the heads
//! of mmdetection.

use std::collections::BTreeMap;

use dw::assign::strategies::fcos::Form;
use dw::assign::{AssignConfig, FcosConfig, Progress};
use dw::geometry::{Grid, STRIDES};
use dw::model::{Outputs, Params};
use dw::train::step::loss_of;
use dw_launch::World;
use tch::{Kind, Tensor};

use crate::case::{Case, close, device, group_within, host, number};

/// FCOS in both forms.
pub fn fcos(case: &Case, kind: Kind) -> Result<(), String> {
    let plain = case.json["variant"] == "plain";
    let config = FcosConfig {
        form: if plain { Form::Plain } else { Form::Improved },
        ..FcosConfig::default()
    };
    let leaves = |name: &str| -> Vec<Tensor> {
        let levels = case.levels(&format!("input.{name}"), kind);
        levels.into_iter().map(|t| t.set_requires_grad(true)).collect()
    };
    let (cls, distances, quality) =
        (leaves("cls_scores"), leaves("bbox_preds"), leaves("centernesses"));
    // The improved form's inputs are in units of the stride.
    let unit = |stride: i64| if plain { 1.0 } else { stride as f64 };
    let outputs = Outputs {
        cls: cls.iter().map(Tensor::shallow_clone).collect(),
        distances: distances.iter().zip(STRIDES).map(|(t, s)| t * unit(s)).collect(),
        quality: quality.iter().map(Tensor::shallow_clone).collect(),
        offset: number(&case.json["prior_offset"]),
    };
    let probed = losses(case, kind, &AssignConfig::Fcos(config), &outputs)?;
    for (name, levels) in
        [("cls_scores", &cls), ("bbox_preds", &distances), ("centernesses", &quality)]
    {
        gradients(case, kind, name, levels)?;
    }
    let labels = host(&probed["label"]).view([case.int("batch"), -1]);
    for image in 0..case.int("batch") {
        let expected = case.tensors[&format!("label.{image}")].to_kind(Kind::Int64);
        if labels.get(image) != expected {
            return Err(format!("image {image}: labels of points differ from the reference's"));
        }
    }
    Ok(())
}

/// Computes the losses of a case, compares them and runs backward; returns the probed tensors.
fn losses(
    case: &Case,
    kind: Kind,
    config: &AssignConfig,
    outputs: &Outputs,
) -> Result<BTreeMap<&'static str, Tensor>, String> {
    let mut params = Params::new(kind, device());
    let strategy = config.build(&mut params, case.int("num_classes"));
    let targets = strategy.matcher.targets(&Grid::centers(&outputs.sizes()), &case.truth());
    let (mut probed, world) = (BTreeMap::new(), World::solo());
    let loss = loss_of(
        &*strategy.criterion,
        outputs,
        &targets,
        &Progress::default(),
        &mut probed,
        (false, &world),
    );
    let loss = loss.map_err(|e| e.to_string())?;
    loss.local.backward();
    let loss = loss.read().map_err(|e| e.to_string())?;
    let expected = &case.json["expected"]["f64"];
    let count = expected.as_object().map_or(0, serde_json::Map::len);
    if count != loss.terms.len() {
        return Err(format!("expected {count} losses, found {:?}", loss.terms));
    }
    let relative = if kind == Kind::Double { 1e-9 } else { 1e-5 };
    for (name, found) in &loss.terms {
        close(name, *found, number(&expected[*name]["total"]), relative)?;
    }
    Ok(probed)
}

/// Compares the gradients of one input. The tolerance in f32 follows from the rounding error that
/// was observed in f32 runs of the reference.
fn gradients(case: &Case, kind: Kind, name: &str, levels: &[Tensor]) -> Result<(), String> {
    let observed = case.json["observed"]["grad_max_over_f32_and_perturbed"].as_f64().unwrap_or(0.0);
    let relative = if kind == Kind::Double { 1e-7 } else { (4.0 * observed).max(2e-5) };
    let grad = |t: &Tensor| if t.grad().defined() { t.grad() } else { t.zeros_like() };
    let expected = case.levels(&format!("grad.{name}"), kind);
    let pairs: Vec<_> = levels.iter().map(grad).zip(expected).collect();
    group_within(&format!("grad.{name}"), &pairs, relative)
}
