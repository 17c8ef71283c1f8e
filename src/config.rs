//! Configuration: TOML files and `--set` laid over the defaults, key by key.
//!
//! Each file may name a `base` (a built-in configuration or a path); what it sets wins over the base. Every key of
//! every layer is checked against the defaults, so that a mistake is told with its file, its key and the nearest valid one.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::assign::DwConfig;
use crate::error::{Error, Result};
use crate::model::ModelConfig;

/// Configurations that are compiled in, by name.
pub const BUILT_IN: &[(&str, &str)] = &[
    ("dw_r50_fpn_1x", include_str!("../configs/dw_r50_fpn_1x.toml")),
    ("dw_r50_fpn_worefine_1x", include_str!("../configs/dw_r50_fpn_worefine_1x.toml")),
    ("dw_r50_fpn_mstrain_2x", include_str!("../configs/dw_r50_fpn_mstrain_2x.toml")),
    ("dw_r50_fpn_dconv_c3-c5_mstrain_2x", include_str!("../configs/dw_r50_fpn_dconv_c3-c5_mstrain_2x.toml")),
    ("dw_r101_fpn_1x", include_str!("../configs/dw_r101_fpn_1x.toml")),
    ("dw_r101_fpn_mstrain_2x", include_str!("../configs/dw_r101_fpn_mstrain_2x.toml")),
    ("dw_r101_fpn_worefine_mstrain_2x", include_str!("../configs/dw_r101_fpn_worefine_mstrain_2x.toml")),
    ("dw_r101_fpn_dconv_c3-c5_mstrain_2x", include_str!("../configs/dw_r101_fpn_dconv_c3-c5_mstrain_2x.toml")),
    ("dw_r101_fpn_dconv_c3-c5_worefine_mstrain_2x", include_str!("../configs/dw_r101_fpn_dconv_c3-c5_worefine_mstrain_2x.toml")),
    ("dw_x101_64x4d_fpn_mstrain_2x", include_str!("../configs/dw_x101_64x4d_fpn_mstrain_2x.toml")),
    ("dw_x101_64x4d_fpn_worefine_mstrain_2x", include_str!("../configs/dw_x101_64x4d_fpn_worefine_mstrain_2x.toml")),
    ("overfit16", include_str!("../configs/overfit16.toml")),
    ("demo", include_str!("../configs/demo.toml")),
    ("smoke", include_str!("../configs/smoke.toml")),
];

/// Everything that can be configured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The network.
    pub model: ModelConfig,
    /// Images.
    pub data: DataConfig,
    /// Label assignment.
    pub assign: DwConfig,
    /// Optimisation.
    pub train: TrainConfig,
    /// Inference and the metric.
    pub eval: EvalConfig,
    /// Checkpoints.
    pub checkpoint: CheckpointConfig,
}

/// `[data]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Folder of shards.
    pub shards: PathBuf,
    /// Split to train on.
    pub train_split: String,
    /// Split to evaluate on.
    pub val_split: String,
    /// Shorter side of the network input, pixels.
    pub short_side: u32,
    /// Most pixels of the longer side.
    pub long_side: u32,
    /// `[low, high]`: draw the shorter side of training images from this range; empty: always `short_side`.
    pub multi_scale: Vec<u32>,
    /// Probability of a horizontal flip.
    pub flip: f64,
    /// Use only the first N images of a split (0: all).
    pub limit: usize,
    /// Do not train on images without boxes or with a side under 32 pixels.
    pub filter_empty: bool,
    /// Consecutive positions that share a padded shape.
    pub group: usize,
    /// Bring images of one orientation together in those groups: less padding.
    #[serde(default)]
    pub aspect_grouping: bool,
    /// Decode JPEGs at a part of their size where the network's input is smaller: less work, other pixels than `false`
    /// (which gives those of OpenCV). No effect on packs of the `zstd` codec.
    #[serde(default)]
    pub scaled_decode: bool,
    /// Parts of the data that nodes keep to (1: every node reads all): less to read and cache for each of many nodes. The
    /// order depends on this number, not on how many nodes there are.
    #[serde(default = "one")]
    pub canonical_nodes: usize,
    /// Decoding threads of a rank (0: the node's cores shared among its ranks).
    pub workers: usize,
}

fn one() -> usize {
    1
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            shards: "coco/shards".into(),
            train_split: "train2017".into(),
            val_split: "val2017".into(),
            short_side: 800,
            long_side: 1333,
            multi_scale: vec![],
            flip: 0.5,
            limit: 0,
            filter_empty: true,
            group: 2,
            aspect_grouping: false,
            scaled_decode: false,
            canonical_nodes: 1,
            workers: 0,
        }
    }
}

/// How the learning rate follows the global batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrScaling {
    /// In proportion to global batch / `base_batch`.
    Linear,
    /// As configured.
    None,
}

/// `[train]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Passes over the data.
    pub epochs: usize,
    /// Stop after this many steps (0: whole schedule).
    pub max_steps: usize,
    /// Images of a rank in one step.
    pub images_per_rank: usize,
    /// Seed of weights, order and augmentation.
    pub seed: u64,
    /// Learning rate at `base_batch` images.
    pub lr: f64,
    /// Global batch that `lr` is meant for.
    pub base_batch: usize,
    /// How `lr` follows the global batch.
    pub lr_scaling: LrScaling,
    /// Epochs after which the rate is multiplied by `lr_decay`.
    pub lr_steps: Vec<usize>,
    /// Factor at each of `lr_steps`.
    pub lr_decay: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: usize,
    /// Share of the rate at the first step of the warm-up.
    pub warmup_ratio: f64,
    /// SGD momentum.
    pub momentum: f64,
    /// Weight decay (not on norm layers).
    pub weight_decay: f64,
    /// Largest norm of the gradient (0: no clipping).
    pub clip_norm: f64,
    /// CPU threads of a rank (0: the node's cores shared among its ranks).
    pub threads: usize,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 12,
            max_steps: 0,
            images_per_rank: 2,
            seed: 0,
            lr: 0.01,
            base_batch: 16,
            lr_scaling: LrScaling::Linear,
            lr_steps: vec![8, 11],
            lr_decay: 0.1,
            warmup_steps: 1000,
            warmup_ratio: 0.001,
            momentum: 0.9,
            weight_decay: 1e-4,
            clip_norm: 0.0,
            threads: 0,
        }
    }
}

/// `[eval]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalConfig {
    /// Evaluate after every N epochs, and at the end (0: never).
    pub every_epochs: usize,
    /// Smallest score (exclusive).
    pub score_threshold: f64,
    /// Most (point, class) pairs of a level.
    pub per_level: usize,
    /// NMS removes boxes that overlap a better one by more than this IoU.
    pub nms_iou: f64,
    /// Most detections of an image.
    pub per_image: usize,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self { every_epochs: 1, score_threshold: 0.05, per_level: 1000, nms_iou: 0.6, per_image: 100 }
    }
}

/// `[checkpoint]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Every N steps (0: after every epoch).
    pub every_steps: usize,
    /// Newest checkpoints to keep, beside the best.
    pub keep: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every_steps: 0, keep: 2 }
    }
}

/// Reads a configuration by name or path, and lays `sets` (`key.path=value`) over it.
///
/// # Errors
/// A missing file, TOML that does not parse, an unknown key, a value of the wrong type or out of range.
pub fn load(name: &str, sets: &[String]) -> Result<Config> {
    let mut merged = defaults()?;
    overlay_named(&mut merged, name, None, 0)?;
    finish(merged, &format!("configuration `{name}`"), sets)
}

/// Lays `sets` (`key.path=value`) over a configuration.
///
/// # Errors
/// An unknown key, a value of the wrong type or out of range.
pub fn with_sets(config: &Config, sets: &[String]) -> Result<Config> {
    let table = Table::try_from(config).map_err(|e| Error::Usage(format!("configuration: {e}")))?;
    finish(table, "configuration", sets)
}

fn finish(mut merged: Table, what: &str, sets: &[String]) -> Result<Config> {
    for set in sets {
        let (key, text) = set.split_once('=').ok_or_else(|| Error::Usage(format!("--set {set}: expected key.path=value, found no `=`")))?;
        let (key, text) = (key.trim(), text.trim());
        let value = parse_value(text);
        let mut layer = Table::new();
        insert_path(&mut layer, key, value);
        overlay(&mut merged, &layer, "", &format!("--set {set}"))?;
    }
    let config: Config = Value::Table(merged)
        .try_into()
        .map_err(|e: toml::de::Error| Error::Usage(format!("{what}: {}", e.to_string().trim().replace('\n', " "))))?;
    check(&config)?;
    Ok(config)
}

/// Parses a configuration that was saved with a run.
pub fn from_saved(text: &str, path: &Path) -> Result<Config> {
    toml::from_str(text).map_err(|e| Error::Data(format!("{}: {e}", path.display())))
}

fn defaults() -> Result<Table> {
    Table::try_from(Config::default()).map_err(|e| Error::Usage(format!("default configuration: {e}")))
}

/// A value as typed after `=`: TOML where it is, else text.
fn parse_value(text: &str) -> Value {
    toml::from_str::<Table>(&format!("v = {text}")).ok().and_then(|mut t| t.remove("v")).unwrap_or_else(|| Value::String(text.to_owned()))
}

fn insert_path(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((head, rest)) => {
            let mut inner = Table::new();
            insert_path(&mut inner, rest, value);
            table.insert(head.to_owned(), Value::Table(inner));
        }
    }
}

fn overlay_named(merged: &mut Table, name: &str, relative_to: Option<&Path>, depth: usize) -> Result<()> {
    if depth > 8 {
        return Err(Error::Usage(format!("configuration `{name}`: more than 8 levels of `base`; does it name itself?")));
    }
    let built_in = BUILT_IN.iter().find(|(n, _)| *n == name);
    let (text, origin, folder) = if let Some((_, text)) = built_in {
        ((*text).to_owned(), format!("built-in configuration `{name}`"), None)
    } else {
        let path = relative_to.map_or_else(|| PathBuf::from(name), |d| d.join(name));
        let text = fs_err::read_to_string(&path).map_err(|e| {
            let names: Vec<_> = BUILT_IN.iter().map(|(n, _)| *n).collect();
            Error::Usage(format!("configuration `{name}` is neither built in nor a file: {e}\nhint: built in are {}", names.join(", ")))
        })?;
        (text, path.display().to_string(), path.parent().map(Path::to_owned))
    };
    let mut layer: Table = toml::from_str(&text).map_err(|e| Error::Usage(format!("{origin}: {}", e.to_string().trim())))?;
    if let Some(base) = layer.remove("base") {
        let base = base.as_str().ok_or_else(|| Error::Usage(format!("{origin}: `base` must be a name or a path, found {base}")))?;
        overlay_named(merged, base, folder.as_deref(), depth + 1)?;
    }
    overlay(merged, &layer, "", &origin)
}

/// Lays `layer` over `under`; both key and type must exist there.
fn overlay(under: &mut Table, layer: &Table, prefix: &str, origin: &str) -> Result<()> {
    for (key, value) in layer {
        let full = format!("{prefix}{key}");
        let Some(old) = under.get_mut(key) else {
            let hint = nearest(&full).map_or_else(String::new, |k| format!("\nhint: did you mean `{k}`?"));
            return Err(Error::Usage(format!("{origin}: unknown key `{full}`{hint}")));
        };
        match (old, value) {
            (Value::Table(old), Value::Table(new)) => overlay(old, new, &format!("{full}."), origin)?,
            (old @ Value::Float(_), Value::Integer(n)) => *old = Value::Float(*n as f64),
            (old, new) if old.same_type(new) => *old = new.clone(),
            (old, new) => {
                let text = format!("{origin}: `{full}`: expected {}, found {} `{new}`", kind_name(old), kind_name(new));
                return Err(Error::Usage(text));
            }
        }
    }
    Ok(())
}

fn kind_name(v: &Value) -> &'static str {
    match v {
        Value::String(_) => "a text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table of keys",
    }
}

/// All valid keys, as `train.lr`.
pub fn keys() -> Vec<String> {
    fn walk(t: &Table, prefix: &str, out: &mut Vec<String>) {
        for (k, v) in t {
            match v {
                Value::Table(t) => walk(t, &format!("{prefix}{k}."), out),
                _ => out.push(format!("{prefix}{k}")),
            }
        }
    }
    let mut out = vec![];
    if let Ok(t) = defaults() {
        walk(&t, "", &mut out);
    }
    out
}

fn nearest(key: &str) -> Option<String> {
    // The last part counts twice: `train.learning_rate`, but also `data.lr` for `train.lr`.
    let tail = |k: &str| k.rsplit('.').next().unwrap_or_default().to_owned();
    let score = |k: &String| strsim::jaro_winkler(k, key) + strsim::jaro_winkler(&tail(k), &tail(key));
    keys().into_iter().max_by(|a, b| score(a).total_cmp(&score(b)))
}

fn check(c: &Config) -> Result<()> {
    let must = |ok: bool, key: &str, expected: &str| {
        if ok { Ok(()) } else { Err(Error::Usage(format!("configuration: `{key}`: expected {expected}"))) }
    };
    must(c.model.width > 0.0 && c.model.width <= 8.0, "model.width", "a number above 0 and at most 8")?;
    must(c.model.channels > 0 && c.model.channels % 8 == 0, "model.channels", "a positive multiple of 8")?;
    must((-1..=4).contains(&c.model.frozen_stages), "model.frozen_stages", "-1 to 4")?;
    let stages = &c.model.dcn_stages;
    must(stages.iter().all(|s| (2..=5).contains(s)), "model.dcn_stages", "a list of feature maps, 2 to 5, as [3, 4, 5]")?;
    must(stages.is_empty() || c.model.backbone.bottleneck(), "model.dcn_stages", "[] for this backbone: it has no bottlenecks")?;
    must(c.data.short_side >= 32, "data.short_side", "at least 32")?;
    must((c.data.short_side..=8192).contains(&c.data.long_side), "data.long_side", "data.short_side to 8192")?;
    let scales = &c.data.multi_scale;
    let range = scales.is_empty() || (scales.len() == 2 && scales[0] <= scales[1] && scales[0] >= 32);
    must(range, "data.multi_scale", "an empty list or [low, high] with 32 <= low <= high")?;
    must((0.0..=1.0).contains(&c.data.flip), "data.flip", "a probability, 0 to 1")?;
    must(c.data.group > 0, "data.group", "at least 1")?;
    must(c.data.canonical_nodes > 0, "data.canonical_nodes", "at least 1")?;
    must(c.train.epochs > 0, "train.epochs", "at least 1")?;
    must(c.train.images_per_rank > 0, "train.images_per_rank", "at least 1")?;
    must(c.train.base_batch > 0, "train.base_batch", "at least 1")?;
    must(c.train.lr >= 0.0 && c.train.lr.is_finite(), "train.lr", "a number of at least 0")?;
    must((0.0..1.0).contains(&c.train.momentum), "train.momentum", "at least 0 and below 1")?;
    must(c.eval.per_image > 0 && c.eval.per_level > 0, "eval.per_image and eval.per_level", "at least 1")?;
    must(c.checkpoint.keep > 0, "checkpoint.keep", "at least 1")?;
    c.assign.check().map_err(|e| Error::Usage(format!("configuration: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_resolves() {
        for (name, _) in BUILT_IN {
            load(name, &[]).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }

    #[test]
    fn sets_win_and_keep_types() {
        let sets = ["train.lr=1", "model.backbone=resnet18", "data.multi_scale=[480, 960]", "model.init=random"].map(String::from);
        let c = load("dw_r50_fpn_1x", &sets).unwrap();
        assert_eq!((c.train.lr, c.model.backbone, &c.data.multi_scale[..]), (1.0, crate::model::Backbone::Resnet18, &[480, 960][..]));
    }

    #[test]
    fn mistakes_name_key_and_nearest() {
        let bad = |set: &str| load("dw_r50_fpn_1x", &[set.to_owned()]).unwrap_err().to_string();
        let e = bad("train.warmup_step=1");
        assert!(e.contains("unknown key `train.warmup_step`") && e.contains("`train.warmup_steps`"), "{e}");
        let e = bad("modle.width=1");
        assert!(e.contains("`modle`") && e.contains("model."), "{e}");
        let e = bad("train.lr=fast");
        assert!(e.contains("`train.lr`: expected a number, found a text"), "{e}");
        let e = bad("model.backbone=resnet42");
        assert!(e.contains("resnet42") && e.contains("resnet50"), "{e}");
        let e = bad("data.flip=1.5");
        assert!(e.contains("data.flip"), "{e}");
        assert!(load("no_such", &[]).unwrap_err().to_string().contains("dw_r50_fpn_1x"));
    }
}
