//! Data sets on disk: their layout is recognised by content, and every split becomes a [`Source`].
//!
//! * [`coco`]: `annotations/instances_SPLIT.json`, or a single JSON file at any path
//! * [`roboflow`]: COCO files of Roboflow, `SPLIT/_annotations.coco.json`
//! * [`voc`]: Pascal VOC, one XML file per image
//! * [`yolo`]: one text file per image, class names in `data.yaml` or `classes.txt`
//! * [`listing`]: names of files, and the division of a data set that has no splits

use std::path::{Path, PathBuf};

use dw_base::file::no_folder;
use dw_base::text::shown;
use dw_base::{Error, Result};

use crate::coco::Coco;
use crate::input::BadImages;
use crate::pixels::{Exif, ExifBoxes};
use crate::validate::split_name;

pub mod coco;
pub mod listing;
pub mod roboflow;
pub mod voc;
pub mod yolo;

use listing::Part;

/// Format of the annotations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Recognised by the files in the folder.
    Auto,
    /// COCO, and Roboflow's `_annotations.coco.json`.
    Coco,
    /// Pascal VOC.
    Voc,
    /// YOLO.
    Yolo,
}

/// Treatment of VOC objects marked `difficult`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Difficult {
    /// Neither trained on nor counted by the metric, like crowd regions.
    #[default]
    Ignore,
    /// Treated like any other object.
    Keep,
    /// Left out.
    Drop,
}

/// How a data set is found and read.
#[derive(Debug, Clone)]
pub struct Search {
    /// Expected format.
    pub format: Format,
    /// Splits to read; empty for all.
    pub only: Vec<String>,
    /// Fraction of the images that goes to the split `val`, for data sets without splits.
    pub val: Option<f64>,
    /// Treatment of VOC's difficult objects, if it was chosen.
    pub difficult: Option<Difficult>,
    /// Treatment of images whose size cannot be read.
    pub bad_images: BadImages,
    /// Treatment of EXIF orientations of images whose size is not annotated, as in YOLO.
    pub exif: Exif,
    /// What the boxes of such images refer to if the EXIF orientation is applied.
    pub exif_boxes: Option<ExifBoxes>,
    /// Follow symbolic links that leave the folders of images and labels.
    pub allow_outside: bool,
}

/// One split of a data set.
#[derive(Debug)]
pub struct Source {
    /// Name of the split.
    pub split: String,
    /// Folder that file names of images are relative to.
    pub images_dir: PathBuf,
    /// File or folder of the annotations, named in errors.
    pub annotations: PathBuf,
    /// Messages about how the annotations were interpreted.
    pub notes: Vec<String>,
    content: Content,
}

/// Where the annotations are.
#[derive(Debug)]
enum Content {
    /// In a COCO file: all images or one part, without the category `without`.
    File { part: Option<(Part, f64)>, without: Option<i64> },
    /// Read already.
    Read { coco: Coco, checksum: String },
}

impl Source {
    /// A split that is not selected and is only named in messages.
    fn unread(split: String, images_dir: &Path, annotations: &Path) -> Self {
        Self {
            split,
            images_dir: images_dir.to_owned(),
            annotations: annotations.to_owned(),
            notes: vec![],
            content: Content::Read { coco: Coco::default(), checksum: String::new() },
        }
    }

    /// A checksum of the annotations, with the options that change them.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn checksum(&self) -> Result<String> {
        match &self.content {
            Content::File { part, without } => {
                let (crc, length) = coco::checksum(&self.annotations)?;
                let part = part.map_or(String::new(), |(part, val)| format!(" {part:?} {val}"));
                let without = without.map_or(String::new(), |id| format!(" without category {id}"));
                Ok(format!("json {crc:08x} {length}{part}{without}"))
            }
            Content::Read { checksum, .. } => Ok(checksum.clone()),
        }
    }

    /// The images, boxes and categories.
    ///
    /// # Errors
    /// An invalid annotation file; a part without images.
    pub fn read(self) -> Result<Coco> {
        match self.content {
            Content::Read { coco, .. } => Ok(coco),
            Content::File { part, without } => {
                let mut coco = crate::coco::read(&self.annotations)?;
                if let Some(id) = without {
                    coco.categories.retain(|c| c.id != id);
                }
                if let Some((part, val)) = part {
                    coco = listing::take_part(coco, part, val, &self.annotations)?;
                }
                Ok(coco)
            }
        }
    }
}

/// The splits of the data set in `dir`, in the requested format or the one recognised.
///
/// # Errors
/// No data set or more than one in the folder, a missing split, invalid annotations.
pub fn find(dir: &Path, search: &Search) -> Result<Vec<Source>> {
    if !dir.is_dir() {
        let at = shown(dir.display());
        return Err(Error::Usage(format!("cannot pack {at}: {}", no_folder(dir))));
    }
    check_requested(&search.only)?;
    let layout = match search.format {
        Format::Coco if roboflow::recognise(dir)?.is_some() => Layout::Roboflow,
        Format::Coco => Layout::Coco,
        Format::Voc => Layout::Voc,
        Format::Yolo => Layout::Yolo,
        Format::Auto => recognise(dir, search)?,
    };
    if search.difficult.is_some() && !matches!(layout, Layout::Voc) {
        return Err(Error::Usage(format!(
            "--difficult: only Pascal VOC marks objects as difficult, and {} is not such a set\n\
             hint: leave --difficult out",
            shown(dir.display())
        )));
    }
    let sources = match layout {
        Layout::Coco => coco::find(dir, search),
        Layout::Roboflow => select(roboflow::find(dir, search)?, search, dir),
        Layout::Voc => select(voc::find(dir, search)?, search, dir),
        Layout::Yolo => select(yolo::find(dir, search)?, search, dir),
    }?;
    if sources.is_empty() {
        let at = shown(dir.display());
        return Err(Error::Usage(format!(
            "cannot pack {at}: found no split with annotated images"
        )));
    }
    Ok(sources)
}

/// Layout of a data set folder.
#[derive(Debug, Clone, Copy)]
enum Layout {
    Coco,
    Roboflow,
    Voc,
    Yolo,
}

/// The layout of a folder.
///
/// # Errors
/// A folder that has none or several; the error lists what was found.
fn recognise(dir: &Path, search: &Search) -> Result<Layout> {
    let all = [
        (Layout::Coco, coco::recognise(dir)?),
        (Layout::Roboflow, roboflow::recognise(dir)?),
        (Layout::Voc, voc::recognise(dir)?),
        (Layout::Yolo, yolo::recognise(dir, search)?),
    ];
    let found: Vec<(Layout, String)> =
        all.into_iter().filter_map(|(layout, what)| Some((layout, what?))).collect();
    let at = shown(dir.display());
    match &found[..] {
        [(layout, _)] => Ok(*layout),
        [] => {
            let names = listing::entries(dir)?;
            let more = names.len().saturating_sub(8);
            let listed = names.iter().take(8).map(|n| shown(n).to_string()).collect::<Vec<_>>();
            let listed = match (listed.is_empty(), more) {
                (true, _) => "an empty folder".to_owned(),
                (_, 0) => listed.join(", "),
                (_, more) => format!("{} and {more} more", listed.join(", ")),
            };
            Err(Error::Usage(format!(
                "cannot pack {at}: found no data set, only {listed}\n\
                 hint: expected `annotations/instances_SPLIT.json` (COCO), \
                 `SPLIT/_annotations.coco.json` (Roboflow), `Annotations/*.xml` (Pascal VOC), or \
                 `data.yaml` or `classes.txt` with `images` and `labels` (YOLO); \
                 `--annotations FILE --images DIR` takes a COCO file anywhere"
            )))
        }
        several => {
            let what: Vec<_> = several.iter().map(|(_, what)| what.as_str()).collect();
            Err(Error::Usage(format!(
                "cannot pack {at}: found more than one data set: {}\n\
                 hint: choose with `--format coco`, `voc` or `yolo`",
                what.join("; ")
            )))
        }
    }
}

/// Checks the names given with `--split`.
fn check_requested(only: &[String]) -> Result<()> {
    for (n, name) in only.iter().enumerate() {
        if let Err(problem) = split_name(name) {
            return Err(Error::Usage(format!("--split: the name `{}` {problem}", shown(name))));
        }
        if only[..n].contains(name) {
            return Err(Error::Usage(format!("--split: `{name}` is given twice")));
        }
    }
    Ok(())
}

/// The splits in `search.only`, in that order, or all if it is empty.
fn select(mut all: Vec<Source>, search: &Search, dir: &Path) -> Result<Vec<Source>> {
    for source in &all {
        if let Err(problem) = split_name(&source.split) {
            let (at, name) = (shown(dir.display()), shown(&source.split));
            return Err(Error::Usage(format!(
                "cannot pack {at}: the split name `{name}` {problem}"
            )));
        }
    }
    if search.only.is_empty() {
        return Ok(all);
    }
    let names: Vec<String> = all.iter().map(|s| s.split.clone()).collect();
    let take = |name: &String| {
        let at = all.iter().position(|s| s.split == *name).ok_or_else(|| {
            Error::Usage(format!(
                "no split `{}` in {}: expected one of {}",
                shown(name),
                shown(dir.display()),
                shown(names.join(", "))
            ))
        })?;
        Ok(all.remove(at))
    };
    search.only.iter().map(take).collect()
}

/// Rejects `--val` for a data set that has splits of its own.
fn refuse_val(search: &Search, dir: &Path) -> Result<()> {
    if search.val.is_none() {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "--val: {} has splits of its own\nhint: leave --val out",
        shown(dir.display())
    )))
}
