//! Configuration: TOML files and `--set` options, merged over the defaults key by key.
//!
//! Every key of every layer is checked against the defaults, so that an error names the file, the
//! key and the nearest valid one. The struct of each section is defined beside the code that reads
//! it; this module composes them, and no section depends on the whole configuration.

mod built_in;
mod check;
pub mod identity;
mod layers;
pub mod row;
mod suggest;
pub mod table;

use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::Table;

pub use built_in::{BUILT_IN, names};
pub use layers::keys;

use crate::assign::AssignConfig;
use crate::data::DataConfig;
use crate::eval::EvalConfig;
use crate::model::ModelConfig;
use crate::train::{CheckpointConfig, RunConfig, TrainConfig};
use crate::{Error, Result};

/// A whole configuration, one field per section.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Network and initial weights.
    pub model: ModelConfig,
    /// Images and their preparation.
    pub data: DataConfig,
    /// Label assignment and loss.
    pub assign: AssignConfig,
    /// Optimisation and communication.
    pub train: TrainConfig,
    /// Inference and evaluation.
    pub eval: EvalConfig,
    /// Checkpoints.
    pub checkpoint: CheckpointConfig,
}

impl Config {
    /// Applies what follows from other settings: no stage of a random backbone is frozen.
    pub fn resolve(&mut self) {
        if self.model.init == "random" {
            self.model.frozen_stages = -1;
        }
    }

    /// What the training loop reads.
    pub fn run(&self) -> RunConfig {
        RunConfig {
            data: self.data.clone(),
            train: self.train.clone(),
            eval: self.eval.clone(),
            checkpoint: self.checkpoint.clone(),
            norm: self.model.norm,
        }
    }

    /// The configuration as TOML, which [`from_toml`] reads.
    ///
    /// # Errors
    /// A value that TOML cannot express, such as an integer above `i64::MAX`.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self)
            .map_err(|e| Error::Usage(format!("cannot save the configuration: {e}")))
    }
}

/// Reads a configuration by built-in name or path and applies `sets` (`key.path=value`).
///
/// # Errors
/// A missing file, TOML that does not parse, an unknown key, a value of the wrong type or out of
/// range.
pub fn load(name: &str, sets: &[String]) -> Result<Config> {
    finish(layers::merge_named(name, None)?, &format!("configuration `{name}`"), sets)
}

/// As [`load`], with the configuration `base` in place of the one at the root of `name`'s chain of
/// `base` keys.
///
/// # Errors
/// As [`load`].
pub fn load_over(name: &str, base: &str, sets: &[String]) -> Result<Config> {
    finish(layers::merge_named(name, Some(base))?, &format!("configuration `{name}`"), sets)
}

/// `[row]` of a configuration file, if it has one.
///
/// # Errors
/// As [`load`].
pub fn row(name: &str) -> Result<Option<row::Row>> {
    layers::row_of(name)
}

/// Applies `sets` (`key.path=value`) to a configuration.
///
/// # Errors
/// An unknown key, a value of the wrong type or out of range.
pub fn with_sets(config: &Config, sets: &[String]) -> Result<Config> {
    let table = Table::try_from(config).map_err(|e| Error::Usage(format!("configuration: {e}")))?;
    finish(table, "configuration", sets)
}

/// Applies the `--set` options to a merged table and checks the result.
fn finish(mut merged: Table, origin: &str, sets: &[String]) -> Result<Config> {
    layers::apply_sets(&mut merged, sets)?;
    check::finite(&merged)?;
    let config = layers::parse(&merged)
        .map_err(|e| Error::Usage(format!("{origin}: {}", e.to_string().trim())))?;
    check::ranges(&config, &merged)?;
    Ok(config)
}

/// Parses the configuration that a checkpoint holds; `path` is named in errors.
///
/// # Errors
/// TOML that does not parse, or that is not a configuration.
pub fn from_toml(text: &str, path: &Path) -> Result<Config> {
    toml::from_str(text).map_err(|e| Error::data(path, "", e))
}

#[cfg(test)]
mod tests {
    use toml::Value;

    use super::*;

    #[test]
    fn every_built_in_resolves() {
        for (name, _) in BUILT_IN {
            load(name, &[]).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }

    #[test]
    fn sets_win_and_keep_types() {
        let sets = [
            "train.lr=1",
            "model.backbone=resnet18",
            "data.multi_scale=[480, 960]",
            "model.init=random",
        ]
        .map(String::from);
        let c = load("dw_r50_fpn_1x", &sets).unwrap();
        assert_eq!(
            (c.train.lr, c.model.backbone, &c.data.multi_scale[..]),
            (1.0, crate::model::Backbone::Resnet18, &[480, 960][..])
        );
    }

    #[test]
    fn a_kind_brings_its_own_keys_and_comes_first() {
        let load = |sets: &[&str]| {
            load("dw_r50_fpn_1x", &sets.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
        };
        let c = load(&["assign.radius=2", "assign.kind=fcos"]).unwrap();
        let AssignConfig::Fcos(fcos) = &c.assign else { panic!("{:?}", c.assign) };
        assert_eq!(fcos.radius, 2.0);
        let e = load(&["assign.kind=fcos", "assign.beta=3"]).unwrap_err().to_string();
        assert!(
            e.contains("unknown key `assign.beta`") && e.contains("another `assign.kind`"),
            "{e}"
        );
        // Every variant is in the list: the error of serde names all variants.
        let serde = toml::from_str::<AssignConfig>("kind = \"none\"").unwrap_err().to_string();
        for c in AssignConfig::all() {
            assert!(
                serde.contains(Table::try_from(&c).unwrap()["kind"].as_str().unwrap()),
                "{serde}"
            );
        }
        assert_eq!(serde.matches('`').count() / 2 - 1, AssignConfig::all().len(), "{serde}");
        let e = load(&["assign.kind=atss2"]).unwrap_err().to_string();
        assert!(e.contains("\"dw\", \"fcos\"") && e.contains("atss2"), "{e}");
        // Setting the current kind again restores its defaults.
        let changed =
            with_sets(&load(&["assign.beta=3"]).unwrap(), &["assign.kind=dw".to_owned()]).unwrap();
        assert_eq!(changed, load(&[]).unwrap());
        let saved = toml::to_string(&c).unwrap();
        assert_eq!(from_toml(&saved, Path::new("saved")).unwrap(), c);
        assert!(
            keys().contains(&"assign.radius".to_owned())
                && keys().contains(&"assign.beta".to_owned())
        );
    }

    #[test]
    fn every_key_and_its_default_are_documented() {
        let page = include_str!("../../docs/configuration.md");
        let defaults = Table::try_from(load("dw_r50_fpn_1x", &[]).unwrap()).unwrap();
        for (section, keys) in defaults.iter().filter(|(section, _)| *section != "assign") {
            let text = page.split_once(&format!("## `[{section}]`")).unwrap().1;
            let text = text.split("\n## ").next().unwrap();
            for (key, value) in keys.as_table().unwrap() {
                let row = format!("| `{key}` | `{value}` | ");
                assert!(text.contains(&row), "expected in [{section}]: {row}");
            }
        }
        for strategy in AssignConfig::all().iter().map(|c| Table::try_from(c).unwrap()) {
            let kind = strategy["kind"].as_str().unwrap();
            let row = page.lines().find(|l| l.starts_with(&format!("| `{kind}`"))).unwrap();
            for (key, value) in strategy.iter().filter(|(key, _)| *key != "kind") {
                let expected = format!("`{key} = {value}`");
                assert!(row.contains(&expected), "expected for {kind}: {expected}");
            }
        }
    }

    /// A checkpoint of an older version, which lacks some keys, can be resumed as the same run.
    #[test]
    fn saved_configurations_of_older_versions() {
        let now = load("dw_r50_fpn_1x", &["train.precision=f32".to_owned()]).unwrap();
        let mut old = Table::try_from(&now).unwrap();
        let later = [
            ("model", "fpn_extra"),
            ("model", "fpn_relu"),
            ("model", "head"),
            ("model", "head_norm"),
            ("model", "distances"),
            ("model", "quality_tower"),
            ("model", "initial_quality"),
            ("model", "tower_bias"),
            ("train", "deterministic"),
        ];
        for (section, key) in later.into_iter().chain([("data", "prefetch_mib")]) {
            let removed =
                old.get_mut(section).and_then(Value::as_table_mut).and_then(|t| t.remove(key));
            assert!(removed.is_some(), "{section}.{key}");
        }
        let read = from_toml(&toml::to_string(&old).unwrap(), Path::new("saved")).unwrap();
        assert_eq!(read, now);
        assert_eq!(identity::changes(&read, &now), (vec![], vec![]));
    }

    #[test]
    fn mistakes_name_key_and_nearest() {
        let bad = |set: &str| load("dw_r50_fpn_1x", &[set.to_owned()]).unwrap_err().to_string();
        let e = bad("train.warmup_step=1");
        assert!(
            e.contains("unknown key `train.warmup_step`") && e.contains("`train.warmup_steps`"),
            "{e}"
        );
        let e = bad("modle.width=1");
        assert!(e.contains("`modle`") && e.contains("model."), "{e}");
        let e = bad("train.lr=fast");
        assert!(e.contains("`train.lr`: expected a number, found a string"), "{e}");
        let e = bad("model.backbone=resnet42");
        assert!(e.contains("resnet42") && e.contains("resnet50"), "{e}");
        for (set, key) in [
            ("data.flip=1.5", "`data.flip`: expected a probability, 0 to 1, found 1.5"),
            ("assign.beta=nan", "`assign.beta`: expected a finite number, found NaN"),
            ("train.lr=inf", "`train.lr`: expected a finite number"),
            ("train.clip_norm=-1", "`train.clip_norm`"),
            ("train.lr_steps=[8, 12]", "`train.lr_steps`: no drop can follow epoch 12"),
            ("train.lr_steps=[8, 3]", "`train.lr_steps`"),
            ("eval.nms_iou=2", "`eval.nms_iou`"),
            ("assign.prior_value=0.5", "`assign.prior_value`"),
        ] {
            let e = bad(set);
            assert!(e.contains(key), "{set}: {e}");
        }
        // serde's errors name no layer.
        assert_eq!(
            bad("train.epochs=-1"),
            "--set train.epochs=-1: `train.epochs`: invalid value: integer `-1`, \
             expected an integer of at least 0"
        );
        assert!(load("no_such", &[]).unwrap_err().to_string().contains("dw_r50_fpn_1x"));
    }
}
