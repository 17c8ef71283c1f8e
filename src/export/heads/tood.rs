//! The task-aligned head of TOOD.

use super::{Predicted, branch, level_scaled, normed};
use crate::Result;
use crate::export::graph::{Graph, int};
use crate::export::layers::{Layer, Source};
use crate::export::level::{Level, decode, encode};
use crate::export::proto::FLOAT;
use crate::model::ModelConfig;
use crate::model::heads::tood::LAYERS;

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
    let mut layers = vec![];
    for i in 0..LAYERS {
        layers.push(normed(g, source, &format!("inter_convs.{i}"))?);
    }
    let cls_task = Decomposition::new(g, source, "cls_decomp", config.channels)?;
    let reg_task = Decomposition::new(g, source, "reg_decomp", config.channels)?;
    let (cls, reg) = (branch(g, source, "tood_cls")?, branch(g, source, "tood_reg")?);
    let cls_map = map(g, source, "cls_prob_module")?;
    let reg_map = map(g, source, "reg_offset_module")?;
    let mut out = vec![];
    for (i, (level, x)) in pyramid.iter().enumerate() {
        let (mut features, mut last) = (vec![], x.clone());
        for layer in &layers {
            last = layer.relu(g, &last);
            features.push(last.clone());
        }
        let all = g.concat(&features, 1);
        let average = g.op("GlobalAveragePool", &[&all]);
        let features = cls_task.apply(g, level, &all, &average);
        let logits = cls.apply(g, &features);
        let aligned_logits = run_map(g, &cls_map, &all);
        let [p, q] = [logits, aligned_logits].map(|l| g.op("Sigmoid", &[&l]));
        let product = g.op("Mul", &[&p, &q]);
        let probabilities = g.op("Sqrt", &[&product]);
        let features = reg_task.apply(g, level, &all, &average);
        let logarithms = reg.apply(g, &features);
        let strides = g.op("Exp", &[&logarithms]);
        let strides = level_scaled(g, source, "scales", i, &strides)?;
        let offsets = run_map(g, &reg_map, &all);
        let distances = aligned(g, level, &strides, &offsets, offset);
        out.push(Predicted { cls: probabilities, distances, quality: None });
    }
    Ok(out)
}

fn map(g: &mut Graph, source: &Source, name: &str) -> Result<[Layer; 2]> {
    Ok([branch(g, source, &format!("{name}.0"))?, branch(g, source, &format!("{name}.2"))?])
}

fn run_map(g: &mut Graph, map: &[Layer; 2], features: &str) -> String {
    let hidden = map[0].relu(g, features);
    map[1].apply(g, &hidden)
}

/// One task's features from those of all layers: each layer has a weight.
struct Decomposition {
    attention: [Layer; 2],
    reduction: Layer,
    width: i64,
}

impl Decomposition {
    fn new(g: &mut Graph, source: &Source, name: &str, width: i64) -> Result<Self> {
        let attention = map(g, source, &format!("{name}.layer_attention"))?;
        Ok(Self {
            attention,
            reduction: normed(g, source, &format!("{name}.reduction_conv"))?,
            width,
        })
    }

    /// `all` `[N, L F, h, w]` and its mean over the cells `[N, L F, 1, 1]` to `[N, F, h, w]`.
    fn apply(&self, g: &mut Graph, level: &Level, all: &str, average: &str) -> String {
        let weights = run_map(g, &self.attention, average);
        let weights = g.op("Sigmoid", &[&weights]);
        let layers = g.reshape(all, &[0, LAYERS, -1, 1]);
        let weighted = g.op("Mul", &[&layers, &weights]);
        let weighted = level.reshape(g, &weighted, &[-1, LAYERS * self.width], &[]);
        self.reduction.relu(g, &weighted)
    }
}

/// Alignment of the boxes; see `aligned` of the head.
fn aligned(g: &mut Graph, level: &Level, strides: &str, offsets: &str, offset: f64) -> String {
    let points = level.points(g, offset);
    let pixels = g.scaled(strides, level.stride as f64);
    let boxes = decode(g, &points, &pixels);
    let (columns, rows) = level.cells();
    let mut places = |which: [i64; 4], cells: &str| {
        let own = g.pick(offsets, 1, &which);
        g.op("Add", &[&own, cells])
    };
    let (x, y) = (places([1, 3, 5, 7], columns), places([0, 2, 4, 6], rows));
    let sampled = level.sample(g, &boxes, 4, &x, &y);
    let (low, high) = (g.slice(&sampled, 1, 0, 2), g.slice(&sampled, 1, 2, 4));
    let crossed = g.op("Greater", &[&low, &high]);
    let crossed = g.cast(&crossed, FLOAT);
    let axes = g.integers(&[1]);
    let crossed = g.with("ReduceMax", &[&crossed, &axes], vec![int("keepdims", 1)]);
    let zero = g.number(0.0);
    let is_crossed = g.op("Greater", &[&crossed, &zero]);
    let boxes = g.op("Where", &[&is_crossed, &boxes, &sampled]);
    encode(g, &points, &boxes)
}
