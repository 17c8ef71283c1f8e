//! Range checks of configuration values, made before anything starts.

use toml::{Table, Value};

use super::Config;
use crate::data::config::MAX_SIDE;
use crate::model::{Distances, HeadNorm, ModelConfig, NormKind, Tower};
use crate::{Error, Result};

/// Maximum number of images in a batch.
const MAX_IMAGES: usize = 1 << 20;

/// Checks that every number of the merged configuration is finite.
pub(super) fn finite(merged: &Table) -> Result<()> {
    fn walk(key: &str, value: &Value) -> Result<()> {
        match value {
            Value::Float(v) if !v.is_finite() => Err(Error::Usage(format!(
                "configuration: `{key}`: expected a finite number, found {v}"
            ))),
            Value::Table(inner) => {
                inner.iter().try_for_each(|(k, v)| walk(&format!("{key}.{k}"), v))
            }
            Value::Array(list) => list.iter().try_for_each(|v| walk(key, v)),
            _ => Ok(()),
        }
    }
    merged.iter().try_for_each(|(k, v)| walk(k, v))
}

/// A value that is out of range.
struct OutOfRange {
    /// Its key, or several joined by " and ".
    key: String,
    expected: String,
}

type Checked = std::result::Result<(), OutOfRange>;

/// Checks the range of every value, section by section. `merged`: the table of the configuration.
pub(super) fn ranges(c: &Config, merged: &Table) -> Result<()> {
    let sections = [model, data, train, schedule, results];
    sections.iter().try_for_each(|check| check(c)).map_err(|OutOfRange { key, expected }| {
        let found: Vec<String> = key.split(" and ").filter_map(|k| value(merged, k)).collect();
        let found = found.join(" and ");
        Error::Usage(format!("configuration: `{key}`: expected {expected}, found {found}"))
    })?;
    drops(c)?;
    let strategy = c
        .assign
        .check()
        .and_then(|()| c.model.check_head())
        .and_then(|()| c.assign.check_head(&c.model));
    strategy.map_err(|e| Error::Usage(format!("configuration: {e}")))
}

/// The value of a dotted key.
fn value(merged: &Table, key: &str) -> Option<String> {
    let (section, name) = key.split_once('.')?;
    merged.get(section)?.get(name).map(ToString::to_string)
}

/// Returns an error that names `key` and the expected range, unless `ok`.
fn must(ok: bool, key: &str, expected: &str) -> Checked {
    let problem = || OutOfRange { key: key.to_owned(), expected: expected.to_owned() };
    if ok { Ok(()) } else { Err(problem()) }
}

fn model(c: &Config) -> Checked {
    let m = &c.model;
    must(m.width > 0.0 && m.width <= 8.0, "model.width", "a number above 0 and at most 8")?;
    must(
        (8..=4096).contains(&m.channels) && m.channels % 8 == 0,
        "model.channels",
        "a multiple of 8, at most 4096",
    )?;
    must((-1..=4).contains(&m.frozen_stages), "model.frozen_stages", "-1 to 4")?;
    must(
        !m.refine || m.distances != Distances::Deltas,
        "model.refine",
        "false for model.distances = \"deltas\": refinement requires a point inside its box",
    )?;
    must(
        m.quality_tower != Tower::Distribution || m.distances == Distances::Distribution,
        "model.distances",
        "\"distribution\" for model.quality_tower = \"distribution\"",
    )?;
    must(
        m.initial_quality == ModelConfig::default().initial_quality
            || matches!(m.quality_tower, Tower::Reg | Tower::Cls),
        "model.initial_quality",
        "the default, 0.5, for a network without a quality branch",
    )?;
    must(
        m.initial_quality > 0.0 && m.initial_quality < 1.0,
        "model.initial_quality",
        "a number between 0 and 1, exclusive",
    )?;
    must(
        m.head_norm != HeadNorm::None || m.tower_bias,
        "model.tower_bias",
        "true for model.head_norm = \"none\": no norm layer adds a bias",
    )?;
    let stages = &m.dcn_stages;
    must(
        stages.iter().all(|s| (2..=5).contains(s)),
        "model.dcn_stages",
        "a list of feature maps, 2 to 5, as [3, 4, 5]",
    )?;
    must(
        stages.is_empty() || m.backbone.bottleneck(),
        "model.dcn_stages",
        "[] for this backbone: it has no bottlenecks",
    )
}

fn data(c: &Config) -> Checked {
    let d = &c.data;
    must(d.short_side >= 32, "data.short_side", "at least 32")?;
    must(
        (d.short_side..=MAX_SIDE).contains(&d.long_side),
        "data.long_side",
        &format!("data.short_side to {MAX_SIDE}"),
    )?;
    let scales = &d.multi_scale;
    let range = scales.is_empty()
        || (scales.len() == 2 && (32..=scales[1]).contains(&scales[0]) && scales[1] <= MAX_SIDE);
    let expected = format!("an empty list or [low, high] with 32 <= low <= high <= {MAX_SIDE}");
    must(range, "data.multi_scale", &expected)?;
    must((0.0..=1.0).contains(&d.flip), "data.flip", "a probability, 0 to 1")?;
    must(d.prefetch_mib > 0, "data.prefetch_mib", "at least 1")?;
    must((1..=4096).contains(&d.group), "data.group", "1 to 4096")?;
    must(d.canonical_nodes > 0, "data.canonical_nodes", "at least 1")
}

fn train(c: &Config) -> Checked {
    let t = &c.train;
    let images = 1..=MAX_IMAGES;
    let expected = format!("1 to {MAX_IMAGES}");
    must(images.contains(&t.images_per_rank), "train.images_per_rank", &expected)?;
    must(images.contains(&t.accumulate), "train.accumulate", &expected)?;
    must(
        t.accumulate == 1 || c.model.norm != NormKind::Bn,
        "train.accumulate",
        "1 with `model.norm` = \"bn\", whose statistics are those of a forward pass",
    )?;
    must(images.contains(&t.base_batch), "train.base_batch", &expected)?;
    must(t.lr >= 0.0, "train.lr", "a number of at least 0")?;
    must((0.0..1.0).contains(&t.momentum), "train.momentum", "at least 0 and below 1")?;
    must((0.0..1.0).contains(&t.weight_decay), "train.weight_decay", "at least 0 and below 1")?;
    must(t.clip_norm >= 0.0, "train.clip_norm", "a number of at least 0 (0: no clipping)")?;
    must(
        t.bucket_mib > 0.0 && t.first_bucket_mib > 0.0,
        "train.bucket_mib and train.first_bucket_mib",
        "more than 0",
    )?;
    let deadlines = [t.step_deadline_s, t.start_deadline_s];
    must(
        deadlines.iter().all(|s| (1.0..=1e6).contains(s)),
        "train.step_deadline_s and train.start_deadline_s",
        "1 to 1000000 seconds",
    )
}

fn schedule(c: &Config) -> Checked {
    let t = &c.train;
    must((1..=1_000_000).contains(&t.epochs), "train.epochs", "1 to 1000000")?;
    must(t.max_steps <= 1_000_000_000_000, "train.max_steps", "at most 1000000000000")?;
    must(t.lr_decay > 0.0, "train.lr_decay", "a number above 0")?;
    must((0.0..=1.0).contains(&t.warmup_ratio), "train.warmup_ratio", "0 to 1")?;
    must(
        t.lr_steps.is_sorted() && t.lr_steps.iter().all(|e| *e > 0),
        "train.lr_steps",
        "ascending numbers of epochs, from 1",
    )
}

/// Checks that every drop of the learning rate is before the end of the run.
fn drops(c: &Config) -> Result<()> {
    let t = &c.train;
    if t.max_steps > 0 {
        // The run has another end than `train.epochs`.
        return Ok(());
    }
    let late: Vec<String> =
        t.lr_steps.iter().filter(|e| **e >= t.epochs).map(ToString::to_string).collect();
    if late.is_empty() {
        return Ok(());
    }
    let hint = "hint: name epochs before the last one; train.lr_steps=[] keeps the rate constant, \
                and train.max_steps ends a run earlier with the same drops";
    Err(Error::Usage(format!(
        "configuration: `train.lr_steps`: no drop can follow epoch {}, since `train.epochs` is {}\n\
         {hint}",
        late.join(" and "),
        t.epochs
    )))
}

/// `[eval]` and `[checkpoint]`.
fn results(c: &Config) -> Checked {
    let e = &c.eval;
    must(e.per_image > 0 && e.per_level > 0, "eval.per_image and eval.per_level", "at least 1")?;
    must((1..=MAX_IMAGES).contains(&e.batch), "eval.batch", &format!("1 to {MAX_IMAGES}"))?;
    must(
        (0.0..1.0).contains(&e.score_threshold),
        "eval.score_threshold",
        "at least 0 and below 1",
    )?;
    must((0.0..=1.0).contains(&e.nms_iou), "eval.nms_iou", "0 to 1")?;
    must(
        e.bag_images == 0 || c.assign.has_bag_weights(),
        "eval.bag_images",
        "0 unless assign.kind is \"dw\" or \"weighting\": the weights of others are not summarised",
    )?;
    must(
        (0.0..=1e7).contains(&c.checkpoint.every_minutes),
        "checkpoint.every_minutes",
        "0 to 10000000 (0: not by time)",
    )?;
    must(c.checkpoint.keep > 0, "checkpoint.keep", "at least 1")
}
