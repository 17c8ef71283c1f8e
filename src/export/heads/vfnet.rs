//! The head of VarifocalNet.

use super::{Predicted, branch, level_scaled, normed, run, tower};
use crate::Result;
use crate::export::graph::Graph;
use crate::export::layers::Source;
use crate::export::level::Level;
use crate::model::heads::vfnet::{TOWER_CONVS, UNIT, star};

/// Features of each level to raw predictions.
///
/// # Errors
/// See [`Source::read`].
pub fn predict(
    g: &mut Graph,
    source: &Source,
    pyramid: &[(Level, String)],
) -> Result<Vec<Predicted>> {
    let cls_tower = tower(g, source, "cls_convs", TOWER_CONVS)?;
    let reg_tower = tower(g, source, "reg_convs", TOWER_CONVS)?;
    let first_layer = normed(g, source, "vfnet_reg_conv")?;
    let first_branch = branch(g, source, "vfnet_reg")?;
    let refine_star = branch(g, source, "vfnet_reg_refine_dconv")?;
    let refine = branch(g, source, "vfnet_reg_refine")?;
    let cls_star = branch(g, source, "vfnet_cls_dconv")?;
    let cls_branch = branch(g, source, "vfnet_cls")?;
    let mut out = vec![];
    for (i, (level, x)) in pyramid.iter().enumerate() {
        let (cls, reg) = (run(g, &cls_tower, x), run(g, &reg_tower, x));
        let first = first_layer.relu(g, &reg);
        let first = first_branch.apply(g, &first);
        let first = level_scaled(g, source, "scales", i, &first)?;
        let first = g.op("Exp", &[&first]);
        let first = g.scaled(&first, UNIT * level.stride as f64);
        let places = places(g, level.stride, &first);
        let starred = refine_star.deformed(g, &reg, &places);
        let starred = g.op("Relu", &[&starred]);
        let factors = refine.apply(g, &starred);
        let factors = level_scaled(g, source, "scales_refine", i, &factors)?;
        let factors = g.op("Exp", &[&factors]);
        let distances = g.op("Mul", &[&factors, &first]);
        let starred = cls_star.deformed(g, &cls, &places);
        let starred = g.op("Relu", &[&starred]);
        let logits = cls_branch.apply(g, &starred);
        let probabilities = g.op("Sigmoid", &[&logits]);
        out.push(Predicted { cls: probabilities, distances, quality: None });
    }
    Ok(out)
}

/// Offsets `[N, 18, h, w]`, cells, of the taps of the star of boxes with distances `[N, 4, h, w]`,
/// pixels.
fn places(g: &mut Graph, stride: i64, distances: &str) -> String {
    let (star, plain) = star();
    let star: Vec<f64> = star.iter().map(|v| f64::from(*v) / stride as f64).collect();
    let plain: Vec<f64> = plain.iter().map(|v| f64::from(*v)).collect();
    let kernel = g.floats(&star, &[18, 4, 1, 1]);
    let plain = g.floats(&plain, &[1, 18, 1, 1]);
    let at = g.op("Conv", &[distances, &kernel]);
    g.op("Sub", &[&at, &plain])
}
