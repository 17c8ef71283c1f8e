//! The DW loss in both formulas, without a network.

use std::collections::BTreeMap;

use dw::assign::{AssignConfig, DwConfig, Formula, NegWeight, Pairs, Prior, Progress};
use dw::geometry::Grid;
use dw::loss::Loss;
use dw::model::{Outputs, Params};
use dw::train::step::loss_of;
use dw_launch::World;
use tch::{Device, Kind, Tensor};

use crate::case::{Case, close, device, group_within, host, number, within};

/// Predictions (leaves with gradients), their loss and the weights in it.
pub struct Run {
    pub outputs: Outputs,
    pub loss: Loss,
    /// Positive weight of each pair, `[N]`.
    pub positive: Tensor,
    /// Negative weight of each cell of [`Pairs`].
    pub negative: Tensor,
    pub pairs: Pairs,
}

/// Computes the loss of predictions and runs backward. `prior`: mean and sigma of the centre prior,
/// each `[C, 2]`.
pub fn run(
    case: &Case,
    outputs: Outputs,
    rule: &DwConfig,
    prior: (&Tensor, &Tensor),
) -> Result<Run, String> {
    let classes = outputs.cls[0].size()[1];
    let mut params = Params::new(outputs.cls[0].kind(), device());
    let strategy = AssignConfig::Dw(rule.clone()).build(&mut params, classes);
    for (name, value) in [("mean", prior.0), ("sigma", prior.1)] {
        let name = format!("bbox_head.center_prior.{name}");
        let entry = params.entries.iter_mut().find(|e| e.name == name).ok_or("no centre prior")?;
        entry.tensor.copy_(value);
    }
    let pairs = rule.pairs(&Grid::centers(&outputs.sizes()), classes, &case.truth());
    let targets = strategy.matcher.targets(&Grid::centers(&outputs.sizes()), &case.truth());
    let mut probed = BTreeMap::new();
    let loss = loss_of(
        &*strategy.criterion,
        &outputs,
        &targets,
        &Progress::default(),
        &mut probed,
        (false, &World::solo()),
    )
    .map_err(|e| e.to_string())?;
    loss.local.backward();
    let loss = loss.read().map_err(|e| e.to_string())?;
    let negative = if rule.formula == Formula::Released { "p_neg" } else { "w_neg" };
    let (positive, negative) = (probed["w_pos"].shallow_clone(), probed[negative].shallow_clone());
    Ok(Run { outputs, loss, positive, negative, pairs })
}

/// The predictions of a case, as leaves with gradients.
fn leaves(case: &Case, kind: Kind) -> Outputs {
    let of = |name: &str| {
        case.levels(&format!("input.{name}"), kind)
            .into_iter()
            .map(|t| t.set_requires_grad(true))
            .collect()
    };
    Outputs {
        cls: of("cls_scores"),
        distances: of("bbox_preds"),
        first: vec![],
        quality: of("objectnesses"),
        cls_is: dw::model::ClassOutput::Logit,
        bins: vec![],
        offset: 0.5,
    }
}

/// Compares the gradients of the predictions; `tolerance` as in [`group_within`].
fn compare_gradients(case: &Case, out: &Outputs, kind: Kind, tolerance: f64) -> Result<(), String> {
    for (name, levels) in
        [("cls_scores", &out.cls), ("bbox_preds", &out.distances), ("objectnesses", &out.quality)]
    {
        let grad = |t: &Tensor| if t.grad().defined() { t.grad() } else { t.zeros_like() };
        let expected = case.levels(&format!("grad.{name}"), kind);
        let pairs: Vec<_> = levels.iter().map(grad).zip(expected).collect();
        group_within(&format!("grad.{name}"), &pairs, tolerance)?;
    }
    Ok(())
}

/// Positive weights of one image as `[P, G]`.
fn dense_positive(run: &Run, image: i64, first_gt: i64, gts: i64) -> Tensor {
    let out = Tensor::zeros([run.pairs.num_points * gts], (run.positive.kind(), Device::Cpu));
    let mut index = vec![];
    let mut from = vec![];
    for (i, (&p, &g)) in run.pairs.point.iter().zip(&run.pairs.gt).enumerate() {
        if (first_gt..first_gt + gts).contains(&g) {
            index.push((p - image * run.pairs.num_points) * gts + g - first_gt);
            from.push(i as i64);
        }
    }
    let values = host(&run.positive).index_select(0, &Tensor::from_slice(&from));
    out.index_copy(0, &Tensor::from_slice(&index), &values).view([run.pairs.num_points, gts])
}

/// Negative weights as `[B, P, C]`; `rest` outside of the cells.
fn dense_negative(run: &Run, images: i64, classes: i64, rest: f64) -> Tensor {
    let out = Tensor::full(
        [images * run.pairs.num_points * classes],
        rest,
        (run.negative.kind(), Device::Cpu),
    );
    out.index_copy(0, &Tensor::from_slice(&run.pairs.logit_index), &host(&run.negative)).view([
        images,
        run.pairs.num_points,
        classes,
    ])
}

/// The formula of the released code: losses, gradients and weights.
pub fn released(case: &Case, kind: Kind) -> Result<(), String> {
    // If sigmoids saturate in f32, the tensors of the case come from the reference in f32
    // (FORMAT.md, section 7). In f64 the same logits do not saturate, so only scalars are compared.
    let extreme = case.json["tensor_source"] == "f32";
    let classes = case.int("num_classes");
    let soft = case.json["soft_prior"].as_bool().unwrap_or(true);
    let rule = if soft {
        DwConfig::default()
    } else {
        DwConfig { prior: Prior::Threshold, prior_value: 0.3, ..DwConfig::default() }
    };
    let prior = |name: &str, default: f64| match case.tensors.get(name) {
        Some(t) => t.to_kind(kind).to_device(device()),
        None => Tensor::full([classes, 2], default, (kind, device())),
    };
    let (mean, sigma) =
        (prior("center_prior.mean", 0.0), prior("center_prior.sigma", f64::from(1.0f32 + 0.11f32)));
    let run = run(case, leaves(case, kind), &rule, (&mean, &sigma))?;
    let expected =
        &case.json["expected"][if extreme && kind == Kind::Float { "f32" } else { "f64" }];
    // Tensors are stored as f32, even those computed in f64.
    let (scalar, tensor) = match (extreme, kind) {
        (_, Kind::Double) => (1e-10, 1e-6),
        (true, _) => (1e-4, 1e-4),
        _ => (1e-5, 1e-5),
    };
    for (name, value) in &run.loss.terms {
        close(name, *value, number(&expected[*name]), scalar)?;
    }
    close("neg_avg_factor", run.loss.denominators[2], number(&expected["neg_avg_factor"]), scalar)?;
    if extreme && kind == Kind::Double {
        return Ok(());
    }
    compare_gradients(case, &run.outputs, kind, tensor)?;
    let images = case.int("batch");
    let p_neg = dense_negative(&run, images, classes, 1.0);
    let (mut negative, mut positive, mut first) = (vec![], vec![], 0);
    for image in 0..images {
        negative
            .push((p_neg.get(image), case.tensors[&format!("p_neg_prob.{image}")].shallow_clone()));
        let gts = case.json["gt_labels"][image as usize].as_array().map_or(0, Vec::len) as i64;
        if gts > 0 {
            positive.push((
                dense_positive(&run, image, first, gts),
                case.tensors[&format!("p_pos_weight.{image}")].shallow_clone(),
            ));
        }
        first += gts;
    }
    group_within("p_neg_prob", &negative, tensor)?;
    group_within("p_pos_weight", &positive, tensor)
}

/// The formula of the paper: losses, gradients and weights.
pub fn paper(case: &Case, kind: Kind) -> Result<(), String> {
    let input = case.input_case()?;
    let k = &case.json["knobs"];
    let rule = DwConfig {
        formula: Formula::Paper,
        beta: number(&k["beta"]),
        mu: number(&k["mu"]),
        gamma1: number(&k["gamma1"]),
        gamma2: number(&k["gamma2"]),
        prior: match k["prior"].as_str() {
            Some("threshold") => Prior::Threshold,
            Some("topk") => Prior::Topk,
            _ => Prior::Soft,
        },
        prior_value: k["prior_value"].as_f64().unwrap_or(0.0),
        w_neg: match k["w_neg"].as_str() {
            Some("p_only") => NegWeight::POnly,
            Some("i_only") => NegWeight::IOnly,
            Some("none") => NegWeight::None,
            Some("one_minus_pos") => NegWeight::OneMinusPos,
            _ => NegWeight::Full,
        },
    };
    let unused = Tensor::zeros([input.int("num_classes"), 2], (kind, device()));
    let run = run(&input, leaves(&input, kind), &rule, (&unused, &unused))?;
    // In f32 the sigmoids of this case saturate: its terms are only finite.
    if kind == Kind::Float && input.json["tensor_source"] == "f32" {
        let wrong = run.loss.terms.iter().find(|(_, value)| !value.is_finite());
        return wrong.map_or(Ok(()), |(name, value)| Err(format!("{name} is {value}")));
    }
    let expected = &case.json["expected"]["f64"];
    let (scalar, tensor) = if kind == Kind::Double { (1e-9, 1e-6) } else { (1e-4, 1e-4) };
    for (name, value) in &run.loss.terms {
        let key = if *name == "loss_loc" { "loss_reg" } else { name };
        close(name, *value, number(&expected[key]), scalar)?;
    }
    compare_gradients(case, &run.outputs, kind, tensor)?;
    let (images, classes) = (input.int("batch"), input.int("num_classes"));
    let w_neg = dense_negative(&run, images, classes, 0.0);
    let mut first = 0;
    for image in 0..images {
        let gts = input.json["gt_labels"][image as usize].as_array().map_or(0, Vec::len) as i64;
        if let Some(w) = case.tensors.get(&format!("w_neg.{image}")) {
            within("w_neg", &w_neg.get(image), w, tensor)?;
        }
        if let Some(w) = case.tensors.get(&format!("w_pos.{image}")) {
            within("w_pos", &dense_positive(&run, image, first, gts), w, tensor)?;
        }
        first += gts;
    }
    Ok(())
}
