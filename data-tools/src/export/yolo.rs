//! YOLO labels: `labels/SPLIT/NAME.txt`, class names and splits in `data.yaml`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use dw_base::Result;
use dw_base::file::write_atomically;
use serde_json::json;

use super::Image;
use crate::reader::Split;
use crate::sources::listing;

/// Writes the label files of a split and `data.yaml`. Crowd regions are left out, because YOLO
/// labels cannot mark them.
pub(super) fn write(split: &Split, images: &[Image], dir: &Path) -> Result<()> {
    let folder = dir.join("labels").join(&split.meta.split);
    let name = |i: &Image| {
        let path = Path::new(&i.file_name).with_extension("txt");
        path.to_string_lossy().into_owned()
    };
    let names: Vec<String> = images.iter().map(name).collect();
    super::create(&folder)?;
    super::create_folders(&folder, &names)?;
    for (image, name) in images.iter().zip(&names) {
        super::write_text(&folder.join(name), &labels(image))?;
    }
    describe(split, dir)
}

/// The label file of an image.
fn labels(image: &Image) -> String {
    let (width, height) = (f64::from(image.width), f64::from(image.height));
    let mut out = String::new();
    for b in image.boxes.iter().filter(|b| !b.crowd) {
        let [x, y, w, h] = b.bbox;
        let (cx, cy) = ((x + w / 2.0) / width, (y + h / 2.0) / height);
        // Writing to a string does not fail.
        let _ = writeln!(out, "{} {cx} {cy} {} {}", b.label, w / width, h / height);
    }
    out
}

/// Writes `data.yaml` with the splits exported so far.
fn describe(split: &Split, dir: &Path) -> Result<()> {
    let path = dir.join("data.yaml");
    let names: Vec<&str> = split.categories().iter().map(|c| c.name.as_str()).collect();
    let mut text = String::new();
    // Several splits of the same kind (train2017, train_extra) become a list under one key.
    let mut keys: Vec<(String, Vec<String>)> = vec![];
    for found in listing::folders(&dir.join("images"))? {
        let key = ["train", "val", "test"].into_iter().find(|k| found.starts_with(k));
        let key = key.map_or_else(|| json!(found).to_string(), str::to_owned);
        let path = format!("images/{found}");
        match keys.iter_mut().find(|(k, _)| *k == key) {
            Some((_, paths)) => paths.push(path),
            None => keys.push((key, vec![path])),
        }
    }
    for (key, paths) in keys {
        let value = if let [path] = &paths[..] { json!(path) } else { json!(paths) };
        let _ = writeln!(text, "{key}: {value}");
    }
    let _ = writeln!(text, "nc: {}\nnames: {}", names.len(), json!(names));
    write_atomically(&path, |file| file.write_all(text.as_bytes()))
}
