//! A synthetic detection data set: textured backgrounds with overlapping anti-aliased shapes in
//! COCO's three sizes, crowd regions and images without objects. The same options give the same
//! files.

use std::io::Write;
use std::path::{Path, PathBuf};

use dw_base::file::write_atomically;
use dw_base::text::shown;
use dw_base::{Error, Result};
use rand::SeedableRng;
use rand_xoshiro::Xoshiro256PlusPlus;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::fs;

use crate::pixels::encode_jpeg;

mod background;
mod classes;
mod outline;
mod scene;

use classes::{MAX_CLASSES, category_id, class_name};
use scene::Scene;

/// Smallest longer side of an image in pixels.
const MIN_SIDE: u32 = 64;
/// Largest longer side.
const MAX_SIDE: u32 = 16_384;
/// Quality of the JPEG files.
const QUALITY: i32 = 92;

/// What to generate.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Number of images of the split `train2017`.
    pub train: usize,
    /// Number of images of the split `val2017`.
    pub val: usize,
    /// Number of classes: eight shapes, each in up to four styles.
    pub classes: usize,
    /// Random seed.
    pub seed: u64,
    /// Longer side of the images in pixels.
    pub side: u32,
}

/// Generates both splits in `dir` as a COCO folder. `tick` is called after each image.
///
/// # Errors
/// Options out of range, a folder that already has annotations or images, failed writes.
pub fn write(dir: &Path, o: &Options, tick: impl Fn() + Sync) -> Result<()> {
    if !(1..=MAX_CLASSES).contains(&o.classes) {
        let found = o.classes;
        return Err(Error::Usage(format!("--classes: expected 1 to {MAX_CLASSES}, found {found}")));
    }
    if !(MIN_SIDE..=MAX_SIDE).contains(&o.side) {
        let found = o.side;
        return Err(Error::Usage(format!(
            "--side: expected {MIN_SIDE} to {MAX_SIDE} pixels, found {found}"
        )));
    }
    if o.train + o.val == 0 {
        return Err(Error::Usage("--images 0 --val 0: nothing to generate".into()));
    }
    let splits = [("train2017", o.train, 1), ("val2017", o.val, 1_000_001)];
    let splits = splits.into_iter().filter(|(_, count, _)| *count > 0);
    for (split, ..) in splits.clone() {
        check_empty(dir, split)?;
    }
    for (split, count, first_id) in splits {
        write_split(dir, split, count, first_id, o, &tick)?;
    }
    Ok(())
}

/// Paths of the annotation file and the image folder of a split.
fn paths(dir: &Path, split: &str) -> (PathBuf, PathBuf) {
    (dir.join("annotations").join(format!("instances_{split}.json")), dir.join(split))
}

/// Checks that a split has neither annotations nor images.
fn check_empty(dir: &Path, split: &str) -> Result<()> {
    let (json_path, images_dir) = paths(dir, split);
    let filled = fs::read_dir(&images_dir).is_ok_and(|mut entries| entries.next().is_some());
    if json_path.exists() || filled {
        let existing = if filled { &images_dir } else { &json_path };
        return Err(Error::Usage(format!(
            "cannot generate a data set: {} exists already\nhint: choose an empty folder",
            shown(existing.display())
        )));
    }
    Ok(())
}

/// Generates `count` images of one split; image and annotation ids begin at `first_id`.
fn write_split(
    dir: &Path,
    split: &str,
    count: usize,
    first_id: i64,
    o: &Options,
    tick: &(impl Fn() + Sync),
) -> Result<()> {
    let (json_path, images_dir) = paths(dir, split);
    for d in [&images_dir, &dir.join("annotations")] {
        fs::create_dir_all(d).map_err(Error::io("cannot create folder", d))?;
    }
    let written: Vec<(Value, Vec<Value>)> = (0..count)
        .into_par_iter()
        .map(|i| {
            let written = write_image(&images_dir, first_id + i as i64, o);
            tick();
            written
        })
        .collect::<Result<_>>()?;
    let (images, annotations): (Vec<_>, Vec<_>) = written.into_iter().unzip();
    let mut annotations: Vec<Value> = annotations.into_iter().flatten().collect();
    for (n, a) in annotations.iter_mut().enumerate() {
        a["id"] = json!(first_id + n as i64);
    }
    let category =
        |c| json!({"id": category_id(c), "name": class_name(c), "supercategory": "shape"});
    let categories: Vec<_> = (0..o.classes).map(category).collect();
    let coco = json!({"info": {"description": "drawn by dw-pack synth", "seed": o.seed},
                      "licenses": [], "images": images, "annotations": annotations,
                      "categories": categories});
    write_atomically(&json_path, |file| file.write_all(coco.to_string().as_bytes()))
}

/// Generates one image; returns its entries of `images` and `annotations`. The random numbers
/// depend only on seed and id, so that the images do not depend on the number of threads.
fn write_image(images_dir: &Path, id: i64, o: &Options) -> Result<(Value, Vec<Value>)> {
    let seed = o.seed ^ (id as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let scene = Scene::draw(&mut rng, o.side, o.classes)?;
    let file_name = format!("{id:012}.jpg");
    let path = images_dir.join(&file_name);
    let jpeg = encode_jpeg(&scene.rgb(), QUALITY).map_err(|e| Error::data(&path, "JPEG", e))?;
    fs::write(&path, jpeg).map_err(Error::io("cannot write", &path))?;
    let (width, height) = scene.size();
    let image = json!({"id": id, "file_name": file_name, "width": width, "height": height});
    Ok((image, scene.annotations(id)))
}
