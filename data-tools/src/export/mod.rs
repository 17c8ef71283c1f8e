//! Exports shards as a COCO folder for other tools. Pixels stored as JPEG give the original file,
//! pixels stored as zstd a PNG file. Segmentations are not packed, so they are not exported.
//!
//! The folder must be empty, files are never overwritten, and no file name in a pack can leave it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use dw_base::text::shown;
use dw_base::{Error, Result};
use fs_err as fs;
use image::ImageEncoder;
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::coco::Category;
use crate::format::{Entry, GtBox};
use crate::input;
use crate::pixels::Layout;
use crate::reader::{Record, Split};
use crate::validate::split_name;

mod names;

/// Result of exporting one split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exported {
    /// Number of images.
    pub images: usize,
    /// Number of images stored smaller than their source, whose boxes are scaled to the stored
    /// size.
    pub shrunken: usize,
    /// Number of images renamed because another image has the same name.
    pub renamed: usize,
}

/// Creates `dir` if it does not exist.
///
/// # Errors
/// A folder that is not empty or cannot be created.
pub fn prepare(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(Error::io("cannot create folder", dir))?;
    let mut entries = fs::read_dir(dir).map_err(Error::io("cannot list", dir))?;
    if entries.next().is_some() {
        return Err(Error::Usage(format!(
            "cannot export into {}: the folder is not empty\nhint: choose an empty folder",
            shown(dir.display())
        )));
    }
    Ok(())
}

/// Writes `split` to `dir`: `SPLIT/*.jpg` or `*.png`, and `annotations/instances_SPLIT.json`. Boxes
/// and areas are in pixels of the written images. `tick` is called after each image.
///
/// # Errors
/// A damaged record, a name that leaves the folder, an existing file, a failed write.
pub fn export_split(split: &Split, dir: &Path, tick: impl Fn() + Sync) -> Result<Exported> {
    let name = &split.meta.split;
    split_name(name).map_err(|e| Error::data(split.path(), "meta `split`", e))?;
    let images_dir = dir.join(name);
    fs::create_dir_all(dir).map_err(Error::io("cannot create folder", dir))?;
    fs::create_dir(&images_dir).map_err(Error::io("cannot create folder", &images_dir))?;
    let annotations_dir = dir.join("annotations");
    fs::create_dir_all(&annotations_dir)
        .map_err(Error::io("cannot create folder", &annotations_dir))?;
    let (names, renamed) = names::file_names(split)?;
    create_folders(&images_dir, &names)?;
    let written: Vec<(Value, Vec<Value>)> = names
        .par_iter()
        .enumerate()
        .map(|(i, file_name)| {
            let done = export_image(split, i, &images_dir, file_name);
            tick();
            done
        })
        .collect::<Result<_>>()?;
    let (images, boxes): (Vec<_>, Vec<_>) = written.into_iter().unzip();
    let annotations: Vec<Value> = boxes.into_iter().flatten().collect();
    let category = |c: &Category| json!({"id": c.id, "name": c.name, "supercategory": ""});
    let categories: Vec<_> = split.categories().iter().map(category).collect();
    let coco = json!({"info": {}, "licenses": [], "images": images, "annotations": annotations,
                      "categories": categories});
    let json_path = annotations_dir.join(format!("instances_{name}.json"));
    let io = |e: std::io::Error| Error::io("cannot write", &json_path)(e);
    let mut file = BufWriter::new(File::create_new(&json_path).map_err(io)?);
    serde_json::to_writer(&mut file, &coco).map_err(|e| io(e.into()))?;
    file.flush().map_err(io)?;
    let shrunken = split.entries().filter(Entry::is_shrunken).count();
    Ok(Exported { images: split.len(), shrunken, renamed })
}

/// Creates the parent folders of all names, and rejects symbolic links to folders elsewhere.
fn create_folders(images_dir: &Path, names: &[String]) -> Result<()> {
    let root = fs::canonicalize(images_dir).map_err(Error::io("cannot open", images_dir))?;
    let parents: BTreeSet<&Path> = names.iter().filter_map(|n| Path::new(n).parent()).collect();
    for parent in parents {
        let folder = root.join(parent);
        fs::create_dir_all(&folder).map_err(Error::io("cannot create folder", &folder))?;
        let inside = input::resolve_inside(&root, &folder);
        if inside.map_err(Error::io("cannot open", &folder))?.is_none() {
            let problem =
                format!("is a symbolic link to a folder outside {}", shown(root.display()));
            return Err(Error::data(&folder, "folder", problem));
        }
    }
    Ok(())
}

/// Writes image `i` as `file_name`; returns its entries of `images` and `annotations`.
fn export_image(
    split: &Split,
    i: usize,
    dir: &Path,
    file_name: &str,
) -> Result<(Value, Vec<Value>)> {
    let record = split.record(i)?;
    record.check_pixels()?;
    write_pixels(&record, &dir.join(file_name))?;
    let e = record.entry;
    let (w, h) = e.original();
    let (sx, sy) = (f64::from(e.width) / f64::from(w), f64::from(e.height) / f64::from(h));
    let annotation = |b: &GtBox| {
        let [x, y, w, h] = b.bbox;
        let bbox = [x * sx, y * sy, w * sx, h * sy];
        let category = split.categories().get(b.label as usize).map(|c| c.id);
        json!({"id": b.id, "image_id": e.image_id, "category_id": category, "bbox": bbox,
               "area": b.area * sx * sy, "iscrowd": u8::from(b.crowd), "segmentation": []})
    };
    let boxes = record.annotations.boxes.iter().map(annotation).collect();
    let image =
        json!({"id": e.image_id, "file_name": file_name, "width": e.width, "height": e.height});
    Ok((image, boxes))
}

/// Writes the pixels to a new file: the bytes of a JPEG unchanged, others as PNG.
fn write_pixels(record: &Record, path: &Path) -> Result<()> {
    let io = |e: std::io::Error| Error::io("cannot write", path)(e);
    let mut file = BufWriter::new(File::create_new(path).map_err(io)?);
    if record.layout == Layout::Jpeg {
        file.write_all(record.pixels).map_err(io)?;
    } else {
        let rgb = record.decode()?;
        let (w, h) = (rgb.width as u32, rgb.height as u32);
        image::codecs::png::PngEncoder::new(&mut file)
            .write_image(&rgb.data, w, h, image::ExtendedColorType::Rgb8)
            .map_err(|e| match e {
                image::ImageError::IoError(e) => io(e),
                e => record.error(format!("cannot be written as PNG: {e}")),
            })?;
    }
    file.flush().map_err(io)
}
