//! Systems other than DW (kind `lab`): losses, gradients and assignments, compared with the heads
//! of mmdetection.

use std::collections::BTreeMap;

use dw::assign::strategies::autoassign::Form;
use dw::assign::strategies::fcos;
use dw::assign::{
    AssignConfig, AtssConfig, AutoAssignConfig, FcosConfig, GflConfig, OtaConfig, PaaConfig,
    Progress, TalConfig, Targets, VflConfig,
};
use dw::geometry::{Grid, STRIDES, distances_of_bins, distances_of_deltas, encode, level_points};
use dw::model::{ClassOutput, Outputs, Params};
use dw::train::step::loss_of;
use dw_launch::World;
use tch::{Kind, Tensor};

use crate::case::{Case, close, device, group_within, host, number, within};

/// Compares the losses of both forms of FCOS and the class of every point.
pub fn both_forms_of_fcos(case: &Case, kind: Kind) -> Result<(), String> {
    let plain = case.json["variant"] == "plain";
    let config = FcosConfig {
        form: if plain { fcos::Form::Plain } else { fcos::Form::Improved },
        ..FcosConfig::default()
    };
    // The improved form's inputs are in units of the stride.
    let unit = |stride: i64| if plain { 1.0 } else { stride as f64 };
    let probed = compare(case, kind, &AssignConfig::Fcos(config), |t, s| t * unit(s))?.probed;
    labels(case, &probed["label"])
}

/// Compares ATSS's losses and assignment.
pub fn atss(case: &Case, kind: Kind) -> Result<(), String> {
    let config = AssignConfig::Atss(AtssConfig::default());
    let found = compare(case, kind, &config, distances_of_deltas)?;
    assigned(case, &found.targets)
}

/// Compares GFLv2's losses, which are GFL's on probabilities.
pub fn gflv2(case: &Case, kind: Kind) -> Result<(), String> {
    gfl(case, kind)
}

/// Compares GFL's losses and assignment.
pub fn gfl(case: &Case, kind: Kind) -> Result<(), String> {
    let config = AssignConfig::Gfl(GflConfig::default());
    let found = compare(case, kind, &config, distances_of_bins)?;
    assigned(case, &found.targets)
}

/// Compares VarifocalNet's losses and assignment. The inputs are the boxes before and after
/// refinement.
pub fn vfnet(case: &Case, kind: Kind) -> Result<(), String> {
    let leaves = |name: &str| -> Vec<Tensor> {
        let levels = case.levels(&format!("input.{name}"), kind);
        levels.into_iter().map(|t| t.set_requires_grad(true)).collect()
    };
    let outputs = Outputs {
        cls: leaves("cls_scores"),
        distances: leaves("bbox_preds_refine"),
        first: leaves("bbox_preds"),
        ..Outputs::empty(ClassOutput::Logit, number(&case.json["prior_offset"]))
    };
    let found = losses(case, kind, &AssignConfig::Vfl(VflConfig::default()), &outputs)?;
    assigned(case, &found.targets)?;
    gradients(case, kind, "cls_scores", &outputs.cls)?;
    gradients(case, kind, "bbox_preds_refine", &outputs.distances)?;
    gradients(case, kind, "bbox_preds", &outputs.first)
}

/// Compares TOOD's losses and assignment. Scores are probabilities, and boxes are in units of the
/// stride.
pub fn tood(case: &Case, kind: Kind) -> Result<(), String> {
    let config = AssignConfig::Tal(TalConfig::default());
    let found = compare(case, kind, &config, |boxes, s| {
        let size = boxes.size();
        let points = level_points(size[2], size[3], s, 0.0, kind, device());
        let points = points.view([1, size[2], size[3], 2]);
        encode(&points, &(boxes.permute([0, 2, 3, 1]) * s as f64)).permute([0, 3, 1, 2])
    })?;
    if case.int("epoch") < 4 {
        return assigned(case, &found.targets);
    }
    let probed = |name: &str| host(&found.probed[name]).view([case.int("batch"), -1]);
    let (gt, target) = (probed("gt_index"), probed("target"));
    let mut first = 0;
    for (i, image) in case.truth().iter().enumerate() {
        let expected = case.tensors[&format!("gt_index.{i}")].to_kind(Kind::Int64).view([-1]);
        let own = gt.get(i as i64);
        let own = (&own - first).where_self(&own.gt(0), &own);
        if own != expected.clamp_min(0) {
            return Err(format!("image {i}: the boxes of points differ from the reference's"));
        }
        let tolerance = if kind == Kind::Double { 1e-7 } else { 1e-5 };
        let expected = case.tensors[&format!("target.{i}")].view([-1]);
        within(&format!("target.{i}"), &target.get(i as i64), &expected, tolerance)?;
        first += image.boxes.len() as i64;
    }
    Ok(())
}

/// Compares the losses of AutoAssign and its variants.
pub fn autoassign(case: &Case, kind: Kind) -> Result<(), String> {
    let form = match case.json["settings"]["variant"].as_str() {
        Some("detach") => Form::Detach,
        Some("lossweight") => Form::LossWeight,
        _ => Form::Published,
    };
    let config = AssignConfig::AutoAssign(AutoAssignConfig { form });
    compare(case, kind, &config, |boxes, _| boxes.shallow_clone()).map(drop)
}

/// Compares the losses with the weighting functions of Table 1.
pub fn weighting(case: &Case, kind: Kind) -> Result<(), String> {
    let mut settings = case.json["settings"].clone();
    settings["kind"] = "weighting".into();
    settings["reg_native"] = settings["reg_native"].as_bool().unwrap_or(false).into();
    let config = serde_json::from_value(settings).map_err(|e| format!("settings: {e}"))?;
    compare(case, kind, &config, |boxes, _| boxes.shallow_clone()).map(drop)
}

/// Compares OTA's losses and the class of every point.
pub fn ota(case: &Case, kind: Kind) -> Result<(), String> {
    let config = AssignConfig::Ota(OtaConfig::default());
    let found = compare(case, kind, &config, |boxes, _| boxes.shallow_clone())?;
    labels(case, &found.probed["label"])
}

/// Compares the class of every point.
fn labels(case: &Case, found: &Tensor) -> Result<(), String> {
    let found = host(found).view([case.int("batch"), -1]);
    for image in 0..case.int("batch") {
        let expected = case.tensors[&format!("label.{image}")].to_kind(Kind::Int64);
        if found.get(image) != expected {
            return Err(format!("image {image}: labels of points differ from the reference's"));
        }
    }
    Ok(())
}

/// Compares PAA's losses, its initial assignment, and the points selected by the mixture models.
pub fn paa(case: &Case, kind: Kind) -> Result<(), String> {
    let config = AssignConfig::Paa(PaaConfig::default());
    let found = compare(case, kind, &config, distances_of_deltas)?;
    assigned(case, &found.targets)?;
    let t = found.targets.points();
    let (images, classes) = (case.int("batch"), case.int("num_classes"));
    let selected = host(&found.probed["selected"]).gt(0.0);
    let rows = host(&t.positive).masked_select(&selected);
    let labels = host(&t.labels.index_select(0, &t.gt)).masked_select(&selected);
    let expected: Vec<Tensor> = (0..images)
        .map(|i| case.tensors[&format!("final_label.{i}")].to_kind(Kind::Int64).view([-1]))
        .collect();
    let expected = Tensor::cat(&expected, 0);
    // In the expected tensors, points in the padding have the background's class as well.
    let background = Tensor::full_like(&expected, classes);
    if background.index_copy(0, &rows, &labels) == expected {
        return Ok(());
    }
    Err("the positive points differ from the reference's".into())
}

/// Compares the assignment of every point. For each point of image I, `gt_index.I` is the number of
/// its box, counted from 1, or 0 for background, or -1 in the padding.
pub fn assigned(case: &Case, targets: &Targets) -> Result<(), String> {
    let (t, images) = (targets.points(), case.int("batch"));
    let indices: Vec<Tensor> = (0..images)
        .map(|i| case.tensors[&format!("gt_index.{i}")].to_kind(Kind::Int64).view([-1]))
        .collect();
    let expected = Tensor::cat(&indices, 0);
    let truth = case.truth();
    let first: Vec<i64> =
        truth.iter().flat_map(|i| 0..i.boxes.len() as i64).map(|gt| gt + 1).collect();
    let index = Tensor::from_slice(&first).index_select(0, &host(&t.gt));
    let mut found = expected.zeros_like().index_copy_(0, &host(&t.positive), &index);
    if found.index_fill_(0, &host(&t.ignored), -1) == expected {
        return Ok(());
    }
    Err("the boxes of points differ from the reference's".into())
}

/// Targets and intermediate values of the losses of a case.
pub struct Compared {
    probed: BTreeMap<&'static str, Tensor>,
    pub targets: Targets,
}

/// Computes the losses of a case with its head, and compares them and their gradients.
/// `to_distances` converts the box predictions of a level, with its stride.
fn compare(
    case: &Case,
    kind: Kind,
    config: &AssignConfig,
    to_distances: impl Fn(&Tensor, i64) -> Tensor,
) -> Result<Compared, String> {
    let leaves = |name: &str| -> Vec<Tensor> {
        if !case.tensors.contains_key(&format!("input.{name}.0")) {
            return vec![];
        }
        let levels = case.levels(&format!("input.{name}"), kind);
        levels.into_iter().map(|t| t.set_requires_grad(true)).collect()
    };
    let inputs = case.json["inputs"].as_array().ok_or("no `inputs`")?;
    let quality_name = inputs.get(2).and_then(serde_json::Value::as_str).unwrap_or("none");
    let (cls, boxes, quality) = (leaves("cls_scores"), leaves("bbox_preds"), leaves(quality_name));
    let shared = |levels: &[Tensor]| levels.iter().map(Tensor::shallow_clone).collect();
    let outputs = Outputs {
        cls: shared(&cls),
        distances: boxes.iter().zip(STRIDES).map(|(t, s)| to_distances(t, s)).collect(),
        first: vec![],
        quality: shared(&quality),
        cls_is: if case.json["system"] == "tood" || case.json["system"] == "gflv2" {
            ClassOutput::Probability
        } else {
            ClassOutput::Logit
        },
        bins: if matches!(config, AssignConfig::Gfl(_)) { shared(&boxes) } else { vec![] },
        offset: number(&case.json["prior_offset"]),
    };
    let compared = losses(case, kind, config, &outputs)?;
    let inputs = [("cls_scores", &cls), ("bbox_preds", &boxes), (quality_name, &quality)];
    for (name, levels) in inputs.into_iter().filter(|(_, levels)| !levels.is_empty()) {
        gradients(case, kind, name, levels)?;
    }
    Ok(compared)
}

/// Computes the losses of a case, compares them and runs backward.
pub fn losses(
    case: &Case,
    kind: Kind,
    config: &AssignConfig,
    outputs: &Outputs,
) -> Result<Compared, String> {
    let mut params = Params::new(kind, device());
    let strategy = config.build(&mut params, case.int("num_classes"));
    let grid = Grid { sizes: outputs.sizes(), offset: strategy.matcher.offset() };
    if (grid.offset - outputs.offset).abs() > 0.0 {
        return Err(format!("expected points at {}, found {}", outputs.offset, grid.offset));
    }
    set_prior(case, &params);
    let targets = strategy.matcher.targets(&grid, &case.truth());
    let (mut probed, world) = (BTreeMap::new(), World::solo());
    let loss = loss_of(
        &*strategy.criterion,
        outputs,
        &targets,
        &Progress { epoch: case.int("epoch") as usize, ..Progress::default() },
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
    prior_gradients(case, kind, &params)?;
    Ok(Compared { probed, targets })
}

const PRIOR: &str = "bbox_head.center_prior.";

/// Sets mean and sigma of a trained centre prior to those of the case, if it has any.
fn set_prior(case: &Case, params: &Params) {
    for e in params.entries.iter().filter(|e| e.name.starts_with(PRIOR)) {
        if let Some(value) = case.tensors.get(e.name.trim_start_matches("bbox_head.")) {
            tch::no_grad(|| e.tensor.shallow_clone().copy_(value));
        }
    }
}

/// Compares the gradients of mean and sigma of a trained centre prior.
fn prior_gradients(case: &Case, kind: Kind, params: &Params) -> Result<(), String> {
    for e in params.entries.iter().filter(|e| e.trainable && e.name.starts_with(PRIOR)) {
        let name = format!("grad.{}", e.name.trim_start_matches("bbox_head."));
        let expected = case.tensors[&name].shallow_clone();
        group_within(&name, &[(e.tensor.grad(), expected)], tolerance(case, kind))?;
    }
    Ok(())
}

/// Tolerance of gradients, relative to the largest one.
pub fn tolerance(case: &Case, kind: Kind) -> f64 {
    let observed = case.json["observed"]["grad_max_over_f32_and_perturbed"].as_f64().unwrap_or(0.0);
    if kind == Kind::Double { 1e-7 } else { (4.0 * observed).max(2e-5) }
}

/// Compares the gradients of one input. The tolerance in f32 is derived from the rounding error
/// observed in f32 runs of the reference.
pub fn gradients(case: &Case, kind: Kind, name: &str, levels: &[Tensor]) -> Result<(), String> {
    let grad = |t: &Tensor| if t.grad().defined() { t.grad() } else { t.zeros_like() };
    let expected = case.levels(&format!("grad.{name}"), kind);
    let pairs: Vec<_> = levels.iter().map(grad).zip(expected).collect();
    group_within(&format!("grad.{name}"), &pairs, tolerance(case, kind))
}
