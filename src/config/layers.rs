//! Merging of configuration layers: defaults, `base` files, the named file, `--set` options.
//!
//! A layer is a TOML table. Each of its keys must exist in the table below it, with a value of the
//! same type. A layer that sets `assign.kind` first replaces the section by the defaults of that
//! kind, wherever the key stands in the layer.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::row::Row;
use super::{BUILT_IN, Config, names, suggest};
use crate::assign::AssignConfig;
use crate::{Error, Result};

/// The section whose key `kind` determines its other keys.
const ASSIGN: &str = "assign";

/// Maximum number of `base` levels; a longer chain is assumed to be a cycle.
const MAX_BASES: usize = 8;

/// The defaults with the configuration `name` (built-in, or a path) merged over them. With `root`,
/// that configuration takes the place of the one at the end of the chain of `base` keys.
pub(super) fn merge_named(name: &str, root: Option<&str>) -> Result<Table> {
    let mut merged = defaults()?;
    let mut chain = chain(name)?;
    if let Some(root) = root {
        if chain.len() > 1 {
            chain.pop();
        }
        chain.extend(self::chain(root)?);
    }
    for file in chain.iter().rev() {
        merge(&mut merged, &file.layer, &file.origin)?;
    }
    Ok(merged)
}

/// `[row]` of the configuration `name` itself, not of its bases.
pub(super) fn row_of(name: &str) -> Result<Option<Row>> {
    Ok(read(name, None)?.row)
}

/// Merges `--set` options over a table.
pub(super) fn apply_sets(merged: &mut Table, sets: &[String]) -> Result<()> {
    let layer = |set| layer_of(set, merged);
    let mut layers = sets.iter().map(layer).collect::<Result<Vec<_>>>()?;
    // `assign.kind` determines the valid keys of its section: it is applied first.
    layers.sort_by_key(|(_, layer)| kind_in(layer).is_none());
    for (set, layer) in &layers {
        merge(merged, layer, &format!("--set {set}"))?;
    }
    Ok(())
}

/// The layer of one `--set` option; `merged`: the table that it is applied to.
fn layer_of<'a>(set: &'a String, merged: &Table) -> Result<(&'a str, Table)> {
    let (key, text) = set.split_once('=').ok_or_else(|| {
        Error::Usage(format!("--set {set}: expected key.path=value, found no `=`"))
    })?;
    let mut layer = Table::new();
    let (key, text) = (key.trim(), text.trim());
    let mut at = Some(merged);
    let mut value = None;
    for part in key.split('.') {
        value = at.and_then(|table| table.get(part));
        at = value.and_then(Value::as_table);
    }
    let parsed = match (value, parse_value(text)) {
        // A name such as 2017 looks like a number, and 2017-01-01 is a date.
        (
            Some(Value::String(_)),
            Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_),
        ) => Value::String(text.to_owned()),
        (_, parsed) => parsed,
    };
    insert_path(&mut layer, key, parsed);
    Ok((set, layer))
}

/// The value of `assign.kind` in a layer.
fn kind_in(layer: &Table) -> Option<&Value> {
    layer.get(ASSIGN)?.get("kind")
}

/// The defaults of the section `[assign]` for a kind.
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

fn defaults() -> Result<Table> {
    Table::try_from(Config::default())
        .map_err(|e| Error::Usage(format!("default configuration: {e}")))
}

/// Parses the value of a `--set` option: as TOML if it is valid TOML, else as a string.
fn parse_value(text: &str) -> Value {
    toml::from_str::<Table>(&format!("v = {text}"))
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Inserts a value at a dotted path, creating the tables on the way.
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

/// A configuration file.
struct ConfigFile {
    /// Its keys except `base` and `[row]`.
    layer: Table,
    base: Option<String>,
    row: Option<Row>,
    /// How errors name it.
    origin: String,
    /// Folder that relative paths in it are resolved against; `None` for a built-in configuration.
    folder: Option<PathBuf>,
}

/// A configuration and its bases, in this order.
fn chain(name: &str) -> Result<Vec<ConfigFile>> {
    let mut files = vec![read(name, None)?];
    while let Some(base) = files.last().and_then(|f| f.base.clone()) {
        if files.len() > MAX_BASES {
            return Err(Error::Usage(format!(
                "configuration `{base}`: more than {MAX_BASES} levels of `base`\n\
                 hint: check that no file is its own base"
            )));
        }
        let (origin, folder) =
            files.last().map(|f| (f.origin.clone(), f.folder.clone())).unwrap_or_default();
        let at = |e: Error| match e {
            Error::Usage(text) => Error::Usage(format!("{origin}: `base`: {text}")),
            e => e,
        };
        files.push(read(&base, folder.as_deref()).map_err(at)?);
    }
    Ok(files)
}

/// Reads a configuration; a relative path is resolved against `folder`.
fn read(name: &str, folder: Option<&Path>) -> Result<ConfigFile> {
    let built_in = BUILT_IN.iter().find(|(n, _)| *n == name);
    let (text, origin, folder) = if let Some((_, text)) = built_in {
        ((*text).to_owned(), format!("built-in configuration `{name}`"), None)
    } else {
        let path = folder.map_or_else(|| PathBuf::from(name), |d| d.join(name));
        let text = std::fs::read_to_string(&path).map_err(|e| {
            if e.kind() == std::io::ErrorKind::InvalidData {
                return Error::Usage(format!("{}: expected UTF-8 text", path.display()));
            }
            let doing = format!(
                "configuration `{name}` is neither built in nor a file: cannot read {}",
                path.display()
            );
            Error::system(&doing, &e, |text| {
                let hint = match suggest::nearest_name(name) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("built in are {}", names().join(", ")),
                };
                Error::Usage(format!("{text}\nhint: {hint}"))
            })
        })?;
        (text, path.display().to_string(), path.parent().map(Path::to_owned))
    };
    let problem = |e: toml::de::Error| Error::Usage(format!("{origin}: {}", e.to_string().trim()));
    let mut layer: Table = toml::from_str(&text).map_err(problem)?;
    let row = layer.remove("row").map(Value::try_into).transpose().map_err(|e| {
        Error::Usage(format!("{origin}: `row`: {}", e.to_string().trim().replace('\n', " ")))
    })?;
    let base = match layer.remove("base") {
        None => None,
        Some(Value::String(base)) => Some(base),
        Some(other) => {
            return Err(Error::Usage(format!(
                "{origin}: `base` must be a name or a path, found {other}"
            )));
        }
    };
    Ok(ConfigFile { layer, base, row, origin, folder })
}

/// Merges a layer over a whole configuration, and checks that it is one.
fn merge(under: &mut Table, layer: &Table, origin: &str) -> Result<()> {
    overlay(under, layer, "", origin)?;
    parse(under).map(drop).map_err(|e| {
        // Its text: what is wrong, and "in `KEY`" on a line of its own.
        let text = e.to_string();
        let (problem, key) = text.trim().split_once("\nin ").unwrap_or((text.trim(), "value"));
        let problem = match problem.split_once(", expected ") {
            Some((found, _)) if found.starts_with("invalid value: integer `-") => {
                format!("{found}, expected an integer of at least 0")
            }
            _ => problem.replace('\n', " "),
        };
        Error::Usage(format!("{origin}: {key}: {problem}"))
    })
}

/// The configuration in a merged table.
pub(super) fn parse(merged: &Table) -> std::result::Result<Config, toml::de::Error> {
    Value::Table(merged.clone()).try_into()
}

/// Merges `layer` over `under`. Every key must exist in `under`, with a value of the same type.
fn overlay(under: &mut Table, layer: &Table, prefix: &str, origin: &str) -> Result<()> {
    if prefix.is_empty()
        && let Some(kind) = kind_in(layer)
    {
        under.insert(ASSIGN.to_owned(), Value::Table(assign_defaults(kind, origin)?));
    }
    for (key, value) in layer {
        let full = format!("{prefix}{key}");
        if !under.contains_key(key) {
            return Err(unknown_key(under, prefix, key, value, origin));
        }
        let Some(old) = under.get_mut(key) else { continue };
        match (old, value) {
            (Value::Table(old), Value::Table(new)) => {
                overlay(old, new, &format!("{full}."), origin)?;
            }
            (old @ Value::Float(_), Value::Integer(n)) => *old = Value::Float(*n as f64),
            (old, new) if old.same_type(new) => *old = new.clone(),
            (old, new) => {
                let (expected, found) = (type_name(old), type_name(new));
                return Err(Error::Usage(format!(
                    "{origin}: `{full}`: expected {expected}, found {found} `{new}`"
                )));
            }
        }
    }
    Ok(())
}

/// The error for a key that `under` does not have, with the nearest valid one.
fn unknown_key(under: &Table, prefix: &str, key: &str, value: &Value, origin: &str) -> Error {
    let full = format!("{prefix}{key}");
    // In an unknown section, the first key indicates which section was meant.
    let inside = value.as_table().and_then(|t| t.keys().next());
    let inside = inside.map_or_else(String::new, |k| format!(".{k}"));
    let valid: Vec<String> = under.keys().map(|k| format!("{prefix}{k}")).collect();
    let valid: &[String] = if prefix.is_empty() { &[] } else { &valid };
    let hint = suggest::hint(&format!("{full}{inside}"), valid);
    Error::Usage(format!("{origin}: unknown key `{full}`\nhint: {hint}"))
}

/// The type of a value, for error messages.
fn type_name(v: &Value) -> &'static str {
    match v {
        Value::String(_) => "a string",
        Value::Integer(_) => "an integer",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table of keys",
    }
}

/// All valid keys, such as `train.lr`; for `[assign]` those of every kind.
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
