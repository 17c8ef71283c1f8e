//! The class names that training programs put beside the weights: mmdetection's `meta.CLASSES` (to 2.x)
//! and `meta.dataset_meta.classes` (from 3.0), Ultralytics' and others' top-level `classes` or `names`.

use std::path::Path;

use pytorch_reader::{PickleValue, PytorchReader};

/// Where names may be: a key of the file's dictionary, and the keys below it.
const PLACES: [&[&str]; 5] = [
    &["meta", "CLASSES"],
    &["meta", "dataset_meta", "CLASSES"],
    &["meta", "dataset_meta", "classes"],
    &["classes"],
    &["names"],
];

/// The names in the order of their labels; `None` where the file has none, or none that are texts.
pub(crate) fn of(path: &Path) -> Option<Vec<String>> {
    PLACES.iter().find_map(|place| {
        let mut value = PytorchReader::read_pickle_data(path, Some(place[0])).ok()?;
        for key in &place[1..] {
            let PickleValue::Dict(mut inside) = value else { return None };
            value = inside.remove(*key)?;
        }
        texts(value)
    })
}

fn texts(value: PickleValue) -> Option<Vec<String>> {
    let PickleValue::List(list) = value else { return None };
    let text = |v| match v {
        PickleValue::String(s) => Some(s),
        _ => None,
    };
    list.into_iter().map(text).collect::<Option<Vec<_>>>().filter(|names| !names.is_empty())
}
