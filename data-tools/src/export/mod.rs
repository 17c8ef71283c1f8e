//! Exports shards as a COCO, Pascal VOC or YOLO folder for other tools. Pixels stored as JPEG give
//! the original file (repaired, if packing had to), pixels stored as zstd a PNG file. Segmentations
//! are not packed, so they are not exported.
//!
//! The folder must be empty, files are never overwritten, and no file name in a pack can leave it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use dw_base::text::shown;
use dw_base::{Error, Result};
use image::ImageEncoder;
use rayon::prelude::*;
use std::fs;

use crate::format::{Entry, GtBox};
use crate::input;
use crate::pixels::Layout;
use crate::reader::{Record, Split};
use crate::validate::split_name;

mod coco;
mod names;
mod voc;
mod yolo;

/// Format of the exported annotations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// COCO: one JSON file per split.
    Coco,
    /// Pascal VOC: one XML file per image.
    Voc,
    /// YOLO: one text file per image.
    Yolo,
}

/// Result of exporting one split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Number of images.
    pub images: usize,
    /// Number of images stored smaller than their source, whose boxes are scaled to the stored
    /// size.
    pub shrunken: usize,
    /// Number of images renamed because another image has the same name.
    pub renamed: usize,
    /// Number of crowd regions that the format cannot express.
    pub crowd: usize,
    /// Folder of the images.
    pub images_dir: PathBuf,
}

/// An exported image. Boxes and areas are in pixels of the written image.
struct Image {
    id: i64,
    file_name: String,
    width: u32,
    height: u32,
    boxes: Vec<GtBox>,
}

/// Checks that all splits have the same class names: a YOLO data set has one list for all splits.
fn check_classes(splits: &[Split]) -> Result<()> {
    let names = |s: &Split| s.categories().iter().map(|c| c.name.clone()).collect::<Vec<_>>();
    let Some((first, others)) = splits.split_first() else { return Ok(()) };
    let Some(other) = others.iter().find(|s| names(s) != names(first)) else { return Ok(()) };
    Err(Error::Inconsistent(format!(
        "{}: the splits `{}` and `{}` have different categories, and a YOLO data set has one list \
         for all\nhint: export to COCO, or pack the splits with the same categories",
        shown(first.path().display()),
        shown(&first.meta.split),
        shown(&other.meta.split)
    )))
}

/// Checks that the categories of a split have different names, which identify them in VOC and YOLO.
/// Spaces around a name do not count, because readers of VOC remove them.
fn check_unique(split: &Split) -> Result<()> {
    let mut ids = HashMap::new();
    for c in split.categories() {
        if let Some(first) = ids.insert(c.name.trim(), c.id) {
            let problem = format!(
                "expected different names of categories, found `{}` for the ids {first} and {}: \
                 VOC and YOLO have no ids\n\
                 hint: export to COCO, or rename one in the annotations and pack the data again",
                shown(&c.name),
                c.id
            );
            return Err(Error::data(split.path(), "meta `categories`", problem));
        }
    }
    Ok(())
}

/// Checks that `splits` can be exported in a format, and creates `dir` if it does not exist.
///
/// # Errors
/// Categories of equal names for VOC and YOLO, splits of different categories for YOLO, a folder
/// that is not empty or cannot be created.
pub fn prepare(dir: &Path, splits: &[Split], format: Format) -> Result<()> {
    if format != Format::Coco {
        splits.iter().try_for_each(check_unique)?;
    }
    if format == Format::Yolo {
        check_classes(splits)?;
    }
    fs::create_dir_all(dir).map_err(Error::io("cannot create folder", dir))?;
    let entries = fs::read_dir(dir).map_err(Error::io("cannot list", dir))?;
    if entries.flatten().any(|entry| entry.file_name() != WRITING) {
        return Err(Error::Usage(format!(
            "cannot export into {}: the folder is not empty\nhint: choose an empty folder",
            shown(dir.display())
        )));
    }
    Ok(())
}

/// Folder inside the target that holds the files until all are complete.
const WRITING: &str = ".writing";

/// The folder that splits are exported to. It stays empty until [`finish`](Self::finish): half of
/// an export would be packed like a whole data set.
pub struct Target {
    dir: PathBuf,
    writing: PathBuf,
    format: Format,
    /// Names already used in the image folder. For VOC, all splits share one.
    taken: HashSet<String>,
}

impl Target {
    /// Exports to `dir`. Removes what an interrupted export has left there.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn new(dir: &Path, format: Format) -> Result<Self> {
        let writing = dir.join(WRITING);
        if writing.exists() {
            fs::remove_dir_all(&writing).map_err(Error::io("cannot remove", &writing))?;
        }
        create(&writing)?;
        Ok(Self { dir: dir.to_owned(), writing, format, taken: HashSet::new() })
    }

    /// Moves the files to their places.
    ///
    /// # Errors
    /// A name that exists already, or a failed move.
    pub fn finish(self) -> Result<()> {
        let all = fs::read_dir(&self.writing).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let all = all.map_err(Error::io("cannot list", &self.writing))?;
        let target = |entry: &fs::DirEntry| self.dir.join(entry.file_name());
        if let Some(to) = all.iter().map(target).find(|to| to.symlink_metadata().is_ok()) {
            return Err(Error::Usage(format!("{}: exists already", shown(to.display()))));
        }
        for entry in &all {
            let to = target(entry);
            fs::rename(entry.path(), &to).map_err(Error::io("cannot rename into", &to))?;
        }
        Ok(())
    }

    /// Writes the images and annotations of a split. `tick` is called after each image.
    ///
    /// # Errors
    /// A damaged record, a name that leaves the folder, an existing file, a failed write, or text
    /// that the format cannot express.
    pub fn export_split(&mut self, split: &Split, tick: impl Fn() + Sync) -> Result<Exported> {
        let name = &split.meta.split;
        split_name(name).map_err(|e| Error::data(split.path(), "meta `split`", e))?;
        let dir = &self.writing;
        let images_dir = match self.format {
            Format::Coco => dir.join(name),
            Format::Voc => dir.join("JPEGImages"),
            Format::Yolo => dir.join("images").join(name),
        };
        match self.format {
            Format::Voc => create(&images_dir)?,
            Format::Coco | Format::Yolo => {
                create(images_dir.parent().unwrap_or(dir))?;
                // Fails if the folder exists, so that nothing is added to files from elsewhere.
                fs::create_dir(&images_dir)
                    .map_err(Error::io("cannot create folder", &images_dir))?;
                self.taken.clear();
            }
        }
        let key = match self.format {
            Format::Coco => names::whole,
            Format::Voc => names::voc_stem,
            Format::Yolo => names::yolo_stem,
        };
        let (names, renamed) = names::file_names(split, key, &mut self.taken)?;
        create_folders(&images_dir, &names)?;
        let write = |(i, file_name): (usize, &String)| {
            let done = export_image(split, i, &images_dir, file_name);
            tick();
            done
        };
        let images: Vec<Image> = names.par_iter().enumerate().map(write).collect::<Result<_>>()?;
        match self.format {
            Format::Coco => coco::write(split, &images, dir)?,
            Format::Voc => voc::write(split, &images, dir)?,
            Format::Yolo => yolo::write(split, &images, dir)?,
        }
        let crowd = images.iter().flat_map(|i| &i.boxes).filter(|b| b.crowd).count();
        Ok(Exported {
            images: split.len(),
            shrunken: split.entries().filter(Entry::is_shrunken).count(),
            renamed,
            crowd: if self.format == Format::Yolo { crowd } else { 0 },
            images_dir: self.dir.join(images_dir.strip_prefix(dir).unwrap_or(&images_dir)),
        })
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.writing);
    }
}

/// Creates a folder and its parents.
fn create(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(Error::io("cannot create folder", dir))
}

/// Creates the parent folders of all names, and rejects symbolic links to folders elsewhere.
fn create_folders(dir: &Path, names: &[String]) -> Result<()> {
    let root = fs::canonicalize(dir).map_err(Error::io("cannot open", dir))?;
    let parents: BTreeSet<&Path> = names.iter().filter_map(|n| Path::new(n).parent()).collect();
    for parent in parents {
        let folder = root.join(parent);
        create(&folder)?;
        let inside = input::resolve_inside(&root, &folder);
        if inside.map_err(Error::io("cannot open", &folder))?.is_none() {
            let problem =
                format!("is a symbolic link to a folder outside {}", shown(root.display()));
            return Err(Error::data(&folder, "folder", problem));
        }
    }
    Ok(())
}

/// Writes image `i` as `file_name`.
fn export_image(split: &Split, i: usize, dir: &Path, file_name: &str) -> Result<Image> {
    let record = split.record(i)?;
    record.check_pixels()?;
    write_pixels(&record, &dir.join(file_name))?;
    let e = record.entry;
    let (w, h) = e.original();
    let (sx, sy) = (f64::from(e.width) / f64::from(w), f64::from(e.height) / f64::from(h));
    let mut boxes = record.annotations.boxes.clone();
    for b in &mut boxes {
        let [x, y, w, h] = b.bbox;
        b.bbox = [x * sx, y * sy, w * sx, h * sy];
        b.area *= sx * sy;
    }
    let file_name = file_name.to_owned();
    Ok(Image { id: e.image_id, file_name, width: e.width, height: e.height, boxes })
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

/// Writes a new text file.
fn write_text(path: &Path, text: &str) -> Result<()> {
    let io = |e: std::io::Error| Error::io("cannot write", path)(e);
    File::create_new(path).map_err(io)?.write_all(text.as_bytes()).map_err(io)
}
