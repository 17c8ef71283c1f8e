//! COCO annotations: `annotations/instances_SPLIT.json`.

use std::io::{BufWriter, Write};
use std::path::Path;

use dw_base::Result;
use dw_base::file::write_atomically;
use serde_json::{Value, json};

use super::Image;
use crate::coco::Category;
use crate::reader::Split;

/// Writes the annotation file of a split.
pub(super) fn write(split: &Split, images: &[Image], dir: &Path) -> Result<()> {
    let folder = dir.join("annotations");
    super::create(&folder)?;
    let category = |c: &Category| json!({"id": c.id, "name": c.name, "supercategory": ""});
    let categories: Vec<_> = split.categories().iter().map(category).collect();
    let image = |i: &Image| {
        let (width, height) = (i.width, i.height);
        json!({"id": i.id, "file_name": i.file_name, "width": width, "height": height})
    };
    let path = folder.join(format!("instances_{}.json", split.meta.split));
    write_atomically(&path, |file| {
        let mut file = BufWriter::new(file);
        file.write_all(b"{\"info\":{},\"licenses\":[],\"categories\":")?;
        serde_json::to_writer(&mut file, &categories)?;
        file.write_all(b",\"images\":")?;
        write_array(&mut file, images.iter().map(image))?;
        file.write_all(b",\"annotations\":")?;
        write_array(&mut file, images.iter().flat_map(|i| annotations(split, i)))?;
        file.write_all(b"}")?;
        file.flush()
    })
}

/// Writes values one by one: all of them would take many times the memory of the boxes.
fn write_array(file: &mut impl Write, values: impl Iterator<Item = Value>) -> std::io::Result<()> {
    file.write_all(b"[")?;
    for (n, value) in values.enumerate() {
        if n > 0 {
            file.write_all(b",")?;
        }
        serde_json::to_writer(&mut *file, &value)?;
    }
    file.write_all(b"]")
}

/// The entries of the boxes of an image.
fn annotations<'a>(split: &'a Split, image: &'a Image) -> impl Iterator<Item = Value> + 'a {
    image.boxes.iter().map(|b| {
        let category = split.categories().get(b.label as usize).map(|c| c.id);
        json!({"id": b.id, "image_id": image.id, "category_id": category, "bbox": b.bbox,
               "area": b.area, "iscrowd": u8::from(b.crowd), "segmentation": []})
    })
}
