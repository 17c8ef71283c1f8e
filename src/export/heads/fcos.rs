//! FCOS's head and its variants, with DW's box refinement.

use super::{Predicted, branch, level_scaled, run, tower};
use crate::Result;
use crate::export::graph::{Graph, int};
use crate::export::layers::{Layer, Source};
use crate::export::level::{ALONG_X, ALONG_Y, Level, decode, directions, encode};
use crate::geometry::{ANCHOR_STRIDES, BINS, DELTA_STD, most_log_size};
use crate::model::heads::fcos::{TOWER_CONVS, branch_prefix};
use crate::model::heads::quality::TOP;
use crate::model::{Distances, ModelConfig, Tower};

/// Features of each level to raw predictions. See [`crate::geometry::Grid::offset`] for `offset`.
///
/// # Errors
/// See [`Source::read`].
pub fn predict(
    g: &mut Graph,
    source: &Source,
    config: &ModelConfig,
    pyramid: &[(Level, String)],
    offset: f64,
) -> Result<Vec<Predicted>> {
    let prefix = branch_prefix(config.distances);
    let towers = ["cls_convs", "reg_convs"].map(|name| tower(g, source, name, TOWER_CONVS));
    let [cls_tower, reg_tower] = towers;
    let (cls_tower, reg_tower) = (cls_tower?, reg_tower?);
    let cls_branch = branch(g, source, &format!("{prefix}_cls"))?;
    let reg_branch = branch(g, source, &format!("{prefix}_reg"))?;
    let quality = match config.quality_tower {
        Tower::Reg | Tower::Cls => Some(branch(g, source, &format!("{prefix}_centerness"))?),
        Tower::None | Tower::Distribution => None,
    };
    let offsets = if config.refine { Some(branch(g, source, "reg_offset")?) } else { None };
    let predictor = match config.quality_tower {
        Tower::Distribution => {
            Some([branch(g, source, "reg_conf.0")?, branch(g, source, "reg_conf.2")?])
        }
        _ => None,
    };
    let mut out = vec![];
    for (i, (level, x)) in pyramid.iter().enumerate() {
        let (cls, reg) = (run(g, &cls_tower, x), run(g, &reg_tower, x));
        let raw = reg_branch.apply(g, &reg);
        let scaled = level_scaled(g, source, "scales", i, &raw)?;
        let mut distances = distances(g, config.distances, level, &scaled);
        if let Some(offsets) = &offsets {
            let offsets = offsets.apply(g, &reg);
            distances = refine(g, level, offset, &distances, &offsets);
        }
        let logits = cls_branch.apply(g, &cls);
        let mut probabilities = g.op("Sigmoid", &[&logits]);
        if let Some(predictor) = &predictor {
            let quality = distribution_quality(g, predictor, level, &scaled);
            probabilities = g.op("Mul", &[&probabilities, &quality]);
        }
        let quality = quality.as_ref().map(|conv| {
            let tower = if config.quality_tower == Tower::Cls { &cls } else { &reg };
            let logits = conv.apply(g, tower);
            g.op("Sigmoid", &[&logits])
        });
        out.push(Predicted { cls: probabilities, distances, quality });
    }
    Ok(out)
}

/// The scaled output of the regression branch to distances `[N, 4, h, w]`, pixels.
fn distances(g: &mut Graph, kind: Distances, level: &Level, x: &str) -> String {
    let stride = level.stride as f64;
    match kind {
        Distances::Relu => {
            let x = g.op("Relu", &[x]);
            g.scaled(&x, stride)
        }
        Distances::Exp => g.op("Exp", &[x]),
        Distances::Distribution => {
            let p = probabilities(g, x);
            let values: Vec<f64> = (0..BINS).map(|v| v as f64 * stride).collect();
            let values = g.floats(&values, &[1, 1, BINS, 1]);
            let products = g.op("Mul", &[&p, &values]);
            let axes = g.integers(&[2]);
            let means = g.with("ReduceSum", &[&products, &axes], vec![int("keepdims", 0)]);
            level.reshape(g, &means, &[-1, 4], &[])
        }
        Distances::Deltas => {
            let side = ANCHOR_STRIDES * stride;
            let shift = g.slice(x, 1, 0, 2);
            let shift = g.scaled(&shift, DELTA_STD.0 * side);
            let log_size = g.slice(x, 1, 2, 4);
            let log_size = g.scaled(&log_size, DELTA_STD.1);
            let [low, high] = [-most_log_size(), most_log_size()].map(|v| g.number(v));
            let log_size = g.op("Clip", &[&log_size, &low, &high]);
            let size = g.op("Exp", &[&log_size]);
            let half = g.scaled(&size, side / 2.0);
            let parts = [g.op("Sub", &[&half, &shift]), g.op("Add", &[&half, &shift])];
            g.concat(&parts, 1)
        }
    }
}

/// Probabilities of the distributions of the distances, `[N, 4, BINS, h w]`, from their logits.
fn probabilities(g: &mut Graph, logits: &str) -> String {
    let apart = g.reshape(logits, &[0, 4, BINS, -1]);
    g.with("Softmax", &[&apart], vec![int("axis", 2)])
}

/// The quality `[N, 1, h, w]` that GFLv2 predicts from the shape of the distributions.
fn distribution_quality(
    g: &mut Graph,
    [hidden, last]: &[Layer; 2],
    level: &Level,
    logits: &str,
) -> String {
    let p = probabilities(g, logits);
    let count = g.integers(&[TOP]);
    let top = g.call("TopK", &[&p, &count], vec![int("axis", 2)], 2).remove(0);
    let axes = g.integers(&[2]);
    let mean = g.with("ReduceMean", &[&top, &axes], vec![int("keepdims", 1)]);
    let statistics = g.concat(&[top, mean], 2);
    let statistics = level.reshape(g, &statistics, &[-1, 4 * (TOP + 1)], &[]);
    let hidden = hidden.relu(g, &statistics);
    let logit = last.apply(g, &hidden);
    g.op("Sigmoid", &[&logit])
}

/// DW's box refinement; see `refine` of the head. `offsets` `[N, 8, h, w]`, cells, as (dy, dx) for
/// each of x1, y1, x2, y2.
fn refine(g: &mut Graph, level: &Level, offset: f64, distances: &str, offsets: &str) -> String {
    let points = level.points(g, offset);
    let boxes = decode(g, &points, distances);
    let directions = directions(g);
    let signed = g.op("Mul", &[distances, &directions]);
    let stride = g.number(level.stride as f64);
    let shift = g.op("Div", &[&signed, &stride]);
    let (columns, rows) = level.cells();
    let mut places = |along: [f64; 4], which: [i64; 4], cells: &str| {
        let along = g.floats(&along, &[1, 4, 1, 1]);
        let shift = g.op("Mul", &[&shift, &along]);
        let own = g.pick(offsets, 1, &which);
        let moved = g.op("Add", &[&own, &shift]);
        g.op("Add", &[&moved, cells])
    };
    let x = places(ALONG_X, [1, 3, 5, 7], columns);
    let y = places(ALONG_Y, [0, 2, 4, 6], rows);
    let sampled = level.sample(g, &boxes, 4, &x, &y);
    let refined = encode(g, &points, &sampled);
    g.op("Relu", &[&refined])
}
