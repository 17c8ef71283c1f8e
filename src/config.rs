//! Configuration: TOML files and `--set` laid over the defaults, key by key.
//!
//! Each file may name a `base` (a built-in configuration or a path); what it sets wins over the base. Every key of
//! every layer is checked against the defaults, so that a mistake is told with its file, its key and the nearest valid one.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::assign::AssignConfig;
use crate::error::{Error, Result};

mod check;
pub mod identity;
mod sections;
mod suggest;

pub use sections::*;

/// Configurations that are compiled in, by name.
pub const BUILT_IN: &[(&str, &str)] = &[
    ("dw_r50_fpn_1x", include_str!("../configs/dw_r50_fpn_1x.toml")),
    ("dw_r50_fpn_worefine_1x", include_str!("../configs/dw_r50_fpn_worefine_1x.toml")),
    ("dw_r50_fpn_mstrain_2x", include_str!("../configs/dw_r50_fpn_mstrain_2x.toml")),
    (
        "dw_r50_fpn_dconv_c3-c5_mstrain_2x",
        include_str!("../configs/dw_r50_fpn_dconv_c3-c5_mstrain_2x.toml"),
    ),
    ("dw_r101_fpn_1x", include_str!("../configs/dw_r101_fpn_1x.toml")),
    ("dw_r101_fpn_mstrain_2x", include_str!("../configs/dw_r101_fpn_mstrain_2x.toml")),
    (
        "dw_r101_fpn_worefine_mstrain_2x",
        include_str!("../configs/dw_r101_fpn_worefine_mstrain_2x.toml"),
    ),
    (
        "dw_r101_fpn_dconv_c3-c5_mstrain_2x",
        include_str!("../configs/dw_r101_fpn_dconv_c3-c5_mstrain_2x.toml"),
    ),
    (
        "dw_r101_fpn_dconv_c3-c5_worefine_mstrain_2x",
        include_str!("../configs/dw_r101_fpn_dconv_c3-c5_worefine_mstrain_2x.toml"),
    ),
    ("dw_x101_64x4d_fpn_mstrain_2x", include_str!("../configs/dw_x101_64x4d_fpn_mstrain_2x.toml")),
    (
        "dw_x101_64x4d_fpn_worefine_mstrain_2x",
        include_str!("../configs/dw_x101_64x4d_fpn_worefine_mstrain_2x.toml"),
    ),
    ("fcos_r50_fpn_1x", include_str!("../configs/fcos_r50_fpn_1x.toml")),
    ("fcos_plain_r50_fpn_1x", include_str!("../configs/fcos_plain_r50_fpn_1x.toml")),
    ("overfit16", include_str!("../configs/overfit16.toml")),
    ("demo", include_str!("../configs/demo.toml")),
    ("smoke", include_str!("../configs/smoke.toml")),
];

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
    let mut layers = sets.iter().map(|set| layer_of(set)).collect::<Result<Vec<_>>>()?;
    // The kind decides which keys its section has: it goes first wherever it stands.
    layers.sort_by_key(|(_, layer)| kind_in(layer).is_none());
    for (set, layer) in &layers {
        overlay(&mut merged, layer, "", &format!("--set {set}"))?;
    }
    check::finite(&merged)?;
    let config: Config = Value::Table(merged).try_into().map_err(|e: toml::de::Error| {
        Error::Usage(format!("{what}: {}", e.to_string().trim().replace('\n', " ")))
    })?;
    check::ranges(&config)?;
    Ok(config)
}

/// One `key.path=value` as a layer.
fn layer_of(set: &str) -> Result<(&str, Table)> {
    let (key, text) = set.split_once('=').ok_or_else(|| {
        Error::Usage(format!("--set {set}: expected key.path=value, found no `=`"))
    })?;
    let mut layer = Table::new();
    insert_path(&mut layer, key.trim(), parse_value(text.trim()));
    Ok((set, layer))
}

/// Sections whose key `kind` decides which other keys they have.
const ASSIGN: &str = "assign";

fn kind_in(layer: &Table) -> Option<&Value> {
    layer.get(ASSIGN)?.get("kind")
}

/// The section `[assign]` of a kind with its defaults.
fn assign_defaults(kind: &Value, origin: &str) -> Result<Table> {
    let all: Vec<Table> =
        AssignConfig::all().iter().filter_map(|c| Table::try_from(c).ok()).collect();
    let found = all.iter().find(|t| t.get("kind") == Some(kind));
    found.cloned().ok_or_else(|| {
        let known: Vec<String> =
            all.iter().filter_map(|t| Some(t.get("kind")?.to_string())).collect();
        Error::Usage(format!(
            "{origin}: `assign.kind`: expected one of {}, found {kind}",
            known.join(", ")
        ))
    })
}

/// Parses a configuration that was saved with a run.
pub fn from_saved(text: &str, path: &Path) -> Result<Config> {
    toml::from_str(text).map_err(|e| Error::Data(format!("{}: {e}", path.display())))
}

fn defaults() -> Result<Table> {
    Table::try_from(Config::default())
        .map_err(|e| Error::Usage(format!("default configuration: {e}")))
}

/// A value as typed after `=`: TOML where it is, else text.
fn parse_value(text: &str) -> Value {
    toml::from_str::<Table>(&format!("v = {text}"))
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
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

fn overlay_named(
    merged: &mut Table,
    name: &str,
    relative_to: Option<&Path>,
    depth: usize,
) -> Result<()> {
    if depth > 8 {
        return Err(Error::Usage(format!(
            "configuration `{name}`: more than 8 levels of `base`; does it name itself?"
        )));
    }
    let built_in = BUILT_IN.iter().find(|(n, _)| *n == name);
    let (text, origin, folder) = if let Some((_, text)) = built_in {
        ((*text).to_owned(), format!("built-in configuration `{name}`"), None)
    } else {
        let path = relative_to.map_or_else(|| PathBuf::from(name), |d| d.join(name));
        let text = fs_err::read_to_string(&path).map_err(|e| {
            let names: Vec<_> = BUILT_IN.iter().map(|(n, _)| *n).collect();
            Error::Usage(format!(
                "configuration `{name}` is neither built in nor a file: {e}\nhint: built in are {}",
                names.join(", ")
            ))
        })?;
        (text, path.display().to_string(), path.parent().map(Path::to_owned))
    };
    let mut layer: Table = toml::from_str(&text)
        .map_err(|e| Error::Usage(format!("{origin}: {}", e.to_string().trim())))?;
    if let Some(base) = layer.remove("base") {
        let base = base.as_str().ok_or_else(|| {
            Error::Usage(format!("{origin}: `base` must be a name or a path, found {base}"))
        })?;
        overlay_named(merged, base, folder.as_deref(), depth + 1)?;
    }
    overlay(merged, &layer, "", &origin)
}

/// Lays `layer` over `under`; both key and type must exist there.
fn overlay(under: &mut Table, layer: &Table, prefix: &str, origin: &str) -> Result<()> {
    if prefix.is_empty()
        && let Some(kind) = kind_in(layer)
    {
        under.insert(ASSIGN.to_owned(), Value::Table(assign_defaults(kind, origin)?));
    }
    for (key, value) in layer {
        let full = format!("{prefix}{key}");
        if !under.contains_key(key) {
            // Of an unknown section the first key inside is what was meant.
            let inside = value
                .as_table()
                .and_then(|t| t.keys().next())
                .map_or_else(String::new, |k| format!(".{k}"));
            let beside: Vec<String> = under.keys().map(|k| format!("{prefix}{k}")).collect();
            let hint = suggest::hint(
                &format!("{full}{inside}"),
                if prefix.is_empty() { &[] } else { &beside },
            );
            return Err(Error::Usage(format!("{origin}: unknown key `{full}`\nhint: {hint}")));
        }
        let Some(old) = under.get_mut(key) else { continue };
        match (old, value) {
            (Value::Table(old), Value::Table(new)) => {
                overlay(old, new, &format!("{full}."), origin)?
            }
            (old @ Value::Float(_), Value::Integer(n)) => *old = Value::Float(*n as f64),
            (old, new) if old.same_type(new) => *old = new.clone(),
            (old, new) => {
                let text = format!(
                    "{origin}: `{full}`: expected {}, found {} `{new}`",
                    kind_name(old),
                    kind_name(new)
                );
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

/// All valid keys, as `train.lr`: of `[assign]` those of every kind.
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
    let mut others = vec![];
    for table in AssignConfig::all().iter().filter_map(|c| Table::try_from(c).ok()) {
        walk(&table, &format!("{ASSIGN}."), &mut others);
    }
    for key in others {
        if !out.contains(&key) {
            out.push(key);
        }
    }
    out
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
        // Every variant is in the list: serde names the ones that there are.
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
        // Naming the kind that is there brings its defaults back.
        let changed =
            with_sets(&load(&["assign.beta=3"]).unwrap(), &["assign.kind=dw".to_owned()]).unwrap();
        assert_eq!(changed, load(&[]).unwrap());
        let saved = toml::to_string(&c).unwrap();
        assert_eq!(from_saved(&saved, Path::new("saved")).unwrap(), c);
        assert!(
            keys().contains(&"assign.radius".to_owned())
                && keys().contains(&"assign.beta".to_owned())
        );
    }

    /// A checkpoint of a version that did not know some keys yet goes on as the same run.
    #[test]
    fn saved_configurations_of_older_versions() {
        let now = load("dw_r50_fpn_1x", &["train.precision=f32".to_owned()]).unwrap();
        let mut old = Table::try_from(&now).unwrap();
        let later = [
            ("model", "distances"),
            ("model", "quality_tower"),
            ("model", "tower_bias"),
            ("train", "deterministic"),
        ];
        for (section, key) in later.into_iter().chain([("data", "prefetch_mib")]) {
            let removed =
                old.get_mut(section).and_then(Value::as_table_mut).and_then(|t| t.remove(key));
            assert!(removed.is_some(), "{section}.{key}");
        }
        let read = from_saved(&toml::to_string(&old).unwrap(), Path::new("saved")).unwrap();
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
        assert!(e.contains("`train.lr`: expected a number, found a text"), "{e}");
        let e = bad("model.backbone=resnet42");
        assert!(e.contains("resnet42") && e.contains("resnet50"), "{e}");
        for (set, key) in [
            ("data.flip=1.5", "`data.flip`"),
            ("assign.beta=nan", "`assign.beta`: expected a finite number, found NaN"),
            ("train.lr=inf", "`train.lr`: expected a finite number"),
            ("train.clip_norm=-1", "`train.clip_norm`"),
            ("train.lr_steps=[8, 12]", "`train.lr_steps`: a drop after epoch 12 would never come"),
            ("train.lr_steps=[8, 3]", "`train.lr_steps`"),
            ("eval.nms_iou=2", "`eval.nms_iou`"),
            ("assign.prior_value=0.5", "`assign.prior_value`"),
        ] {
            let e = bad(set);
            assert!(e.contains(key), "{set}: {e}");
        }
        assert!(load("no_such", &[]).unwrap_err().to_string().contains("dw_r50_fpn_1x"));
    }
}
