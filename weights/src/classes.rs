//! Class names stored with the weights.
//!
//! mmdetection stores them as `meta.CLASSES` (2.x) or `meta.dataset_meta.classes` (3.x), other
//! programs as a top-level `classes` or `names`. `.safetensors` files have them as a JSON list
//! under the metadata key `classes`.

use std::collections::HashMap;
use std::path::Path;

use pytorch_reader::{PickleValue, PytorchReader};

/// Metadata key of the class names in a `.safetensors` file.
pub(crate) const KEY: &str = "classes";

/// Metadata of a `.safetensors` file with the weights of a network with these classes. It has one
/// key, because the order of several is random in the file.
pub fn metadata(names: &[String]) -> HashMap<String, String> {
    HashMap::from([(KEY.to_owned(), serde_json::json!(names).to_string())])
}

/// Possible locations in a pickle: a top-level key, and paths of keys below it.
const LOCATIONS: [(&str, &[&[&str]]); 4] = [
    (
        "meta",
        &[&["CLASSES"], &["classes"], &["dataset_meta", "CLASSES"], &["dataset_meta", "classes"]],
    ),
    ("dataset_meta", &[&["CLASSES"], &["classes"]]),
    ("classes", &[&[]]),
    ("names", &[&[]]),
];

/// Reads the class names of a PyTorch file, in label order. `None` if the file has none.
pub(crate) fn from_pickle(path: &Path) -> Option<Vec<String>> {
    LOCATIONS.iter().find_map(|(key, paths)| {
        let value = PytorchReader::read_pickle_data(path, Some(key)).ok()?;
        paths.iter().find_map(|keys| strings(descend(&value, keys)?))
    })
}

/// Follows a path of dictionary keys.
fn descend<'a>(value: &'a PickleValue, keys: &[&str]) -> Option<&'a PickleValue> {
    keys.iter().try_fold(value, |value, key| match value {
        PickleValue::Dict(inside) => inside.get(*key),
        _ => None,
    })
}

/// Converts a list of strings, or a dictionary from label to string (`0: "person"`, without gaps).
fn strings(value: &PickleValue) -> Option<Vec<String>> {
    let string = |v: &PickleValue| match v {
        PickleValue::String(s) => Some(s.clone()),
        _ => None,
    };
    let names: Option<Vec<String>> = match value {
        PickleValue::List(list) => list.iter().map(string).collect(),
        PickleValue::Dict(map) => {
            (0..map.len()).map(|label| string(map.get(&label.to_string())?)).collect()
        }
        _ => None,
    };
    names.filter(|names| !names.is_empty())
}

/// Parses the class names in the metadata of a `.safetensors` file.
pub(crate) fn from_json(text: &str) -> Option<Vec<String>> {
    serde_json::from_str::<Vec<String>>(text).ok().filter(|names| !names.is_empty())
}
