//! The class names that training programs put beside the weights: mmdetection's `meta.CLASSES` (to 2.x)
//! and `meta.dataset_meta.classes` (from 3.0), others' top-level `classes` or `names`; the key `classes`
//! in the metadata of a `.safetensors` file, a JSON list.

use std::path::Path;

use pytorch_reader::{PickleValue, PytorchReader};

/// Key of a `.safetensors` file's metadata.
pub(crate) const KEY: &str = "classes";

/// Where names may be in a pickle: a key of the file's dictionary, and below it the keys of each place.
const PLACES: [(&str, &[&[&str]]); 4] = [
    (
        "meta",
        &[&["CLASSES"], &["classes"], &["dataset_meta", "CLASSES"], &["dataset_meta", "classes"]],
    ),
    ("dataset_meta", &[&["CLASSES"], &["classes"]]),
    ("classes", &[&[]]),
    ("names", &[&[]]),
];

/// The names in the order of their labels; `None` where the file has none, or none that are texts.
pub(crate) fn of(path: &Path) -> Option<Vec<String>> {
    PLACES.iter().find_map(|(key, places)| {
        let value = PytorchReader::read_pickle_data(path, Some(key)).ok()?;
        places.iter().find_map(|place| texts(below(&value, place)?))
    })
}

fn below<'a>(value: &'a PickleValue, keys: &[&str]) -> Option<&'a PickleValue> {
    keys.iter().try_fold(value, |value, key| match value {
        PickleValue::Dict(inside) => inside.get(*key),
        _ => None,
    })
}

/// A list of texts, or a dictionary of them by label (`0: "person"`, without gaps).
fn texts(value: &PickleValue) -> Option<Vec<String>> {
    let text = |v: &PickleValue| match v {
        PickleValue::String(s) => Some(s.clone()),
        _ => None,
    };
    let names: Option<Vec<String>> = match value {
        PickleValue::List(list) => list.iter().map(text).collect(),
        PickleValue::Dict(map) => (0..map.len()).map(|n| text(map.get(&n.to_string())?)).collect(),
        _ => None,
    };
    names.filter(|names| !names.is_empty())
}

/// The names that a `.safetensors` file's metadata hold.
pub(crate) fn from_json(text: &str) -> Option<Vec<String>> {
    serde_json::from_str::<Vec<String>>(text).ok().filter(|names| !names.is_empty())
}
