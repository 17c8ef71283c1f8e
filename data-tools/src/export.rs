//! Shards back to a COCO folder, for a look with other tools. JPEG bytes that were kept come back identical;
//! pixels stored as zstd become PNG files. Polygons were not packed and do not come back.

use std::path::Path;

use fs_err as fs;
use rayon::prelude::*;
use serde_json::json;

use crate::error::{Error, Result};
use crate::pixels::Layout;
use crate::reader::Split;

/// Writes `split` below `dir` (`SPLIT/*.jpg|png`, `annotations/instances_SPLIT.json`). Returns the number of images.
///
/// # Errors
/// A damaged record, a file that exists already, a full disk.
pub fn export_split(split: &Split, dir: &Path, tick: impl Fn() + Sync) -> Result<usize> {
    let name = &split.meta.split;
    let images_dir = dir.join(name);
    let json_path = dir.join("annotations").join(format!("instances_{name}.json"));
    if json_path.exists() {
        return Err(Error::Usage(format!(
            "cannot export: {} exists already\nhint: choose an empty folder",
            json_path.display()
        )));
    }
    for d in [&images_dir, &dir.join("annotations")] {
        fs::create_dir_all(d).map_err(Error::io("cannot create folder", d))?;
    }
    let images: Vec<_> = (0..split.len())
        .into_par_iter()
        .map(|i| {
            let done = export_image(split, i, &images_dir);
            tick();
            done
        })
        .collect::<Result<_>>()?;
    let (mut entries, mut annotations) = (vec![], vec![]);
    for (image, boxes) in images {
        entries.push(image);
        annotations.extend(boxes);
    }
    let categories: Vec<_> = split
        .categories()
        .iter()
        .map(|c| json!({"id": c.id, "name": c.name, "supercategory": ""}))
        .collect();
    let coco = json!({"info": {}, "licenses": [], "images": entries, "annotations": annotations, "categories": categories});
    let text = serde_json::to_vec(&coco).map_err(|e| Error::Usage(e.to_string()))?;
    fs::write(&json_path, text).map_err(Error::io("cannot write", &json_path))?;
    Ok(split.len())
}

type Exported = (serde_json::Value, Vec<serde_json::Value>);

fn export_image(split: &Split, i: usize, dir: &Path) -> Result<Exported> {
    let record = split.record(i)?;
    let mut file_name = record.annotations.file_name.clone();
    if record.layout != Layout::Jpeg {
        file_name = Path::new(&file_name).with_extension("png").to_string_lossy().into_owned();
    }
    let relative = Path::new(&file_name);
    if relative.is_absolute() || relative.components().any(|c| c == std::path::Component::ParentDir)
    {
        return Err(Error::data(
            dir,
            format!("record {i}"),
            format!("`file_name` {file_name} would leave the folder"),
        ));
    }
    let path = dir.join(relative);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::io("cannot create folder", parent))?;
    }
    if path.exists() {
        return Err(Error::Usage(format!(
            "cannot export: {} exists already\nhint: choose an empty folder",
            path.display()
        )));
    }
    if record.layout == Layout::Jpeg {
        fs::write(&path, record.pixels).map_err(Error::io("cannot write", &path))?;
    } else {
        let rgb = record.decode()?;
        image::save_buffer(
            &path,
            &rgb.data,
            rgb.width as u32,
            rgb.height as u32,
            image::ColorType::Rgb8,
        )
        .map_err(|e| Error::data(&path, "PNG", e.to_string()))?;
    }
    let e = record.entry;
    let boxes = record
        .annotations
        .boxes
        .iter()
        .map(|b| {
            json!({"id": b.id, "image_id": e.image_id, "category_id": split.categories()[b.label as usize].id, "bbox": b.bbox,
                   "area": b.area, "iscrowd": u8::from(b.crowd), "segmentation": []})
        })
        .collect();
    Ok((
        json!({"id": e.image_id, "file_name": file_name, "width": e.width, "height": e.height}),
        boxes,
    ))
}
