//! The heads as ONNX operators: features of the levels to raw predictions.

mod fcos;
mod tood;
mod vfnet;

use super::graph::Graph;
use super::layers::{Layer, NormOf, Source};
use super::level::Level;
use crate::Result;
use crate::model::{HeadKind, ModelConfig};

/// Raw predictions of one level.
#[derive(Debug)]
pub struct Predicted {
    /// Class probabilities `[N, C, h, w]`.
    pub cls: String,
    /// Distances (l, t, r, b) `[N, 4, h, w]`, pixels.
    pub distances: String,
    /// Quality from 0 to 1 `[N, 1, h, w]`, if the head predicts it.
    pub quality: Option<String>,
}

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
    match config.head {
        HeadKind::Fcos => fcos::predict(g, source, config, pyramid, offset),
        HeadKind::Tood => tood::predict(g, source, config, pyramid, offset),
        HeadKind::Vfnet => vfnet::predict(g, source, pyramid),
    }
}

/// The convolution `name` of the head.
fn branch(g: &mut Graph, source: &Source, name: &str) -> Result<Layer> {
    Layer::plain(g, source, &format!("bbox_head.{name}"))
}

/// The layer `name` of the head: a convolution and, unless the configuration has none, group norm.
fn normed(g: &mut Graph, source: &Source, name: &str) -> Result<Layer> {
    let norm = format!("bbox_head.{name}.gn");
    let has_norm = source.has(&format!("{norm}.weight"));
    let norm = if has_norm { NormOf::Group(&norm) } else { NormOf::None };
    Layer::new(g, source, &format!("bbox_head.{name}.conv"), norm, (1, 1))
}

/// The `count` layers `name` of a tower.
fn tower(g: &mut Graph, source: &Source, name: &str, count: usize) -> Result<Vec<Layer>> {
    (0..count).map(|i| normed(g, source, &format!("{name}.{i}"))).collect()
}

/// Applies layers, each followed by ReLU.
fn run(g: &mut Graph, layers: &[Layer], x: &str) -> String {
    layers.iter().fold(x.to_owned(), |y, layer| layer.relu(g, &y))
}

/// `x` times the factor `name` of a level.
fn level_scaled(
    g: &mut Graph,
    source: &Source,
    name: &str,
    level: usize,
    x: &str,
) -> Result<String> {
    let factor = source.scalar(&format!("bbox_head.{name}.{level}.scale"))?;
    Ok(g.scaled(x, factor))
}
