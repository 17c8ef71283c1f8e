//! `instances_*.json` read as a stream: one pass, no tree, polygons skipped.
//!
//! Memory is about 80 bytes an annotation. The text is memory-mapped, and what the parser has
//! passed is given back to the system as it goes.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::path::Path;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::input;

mod numbers;

/// One entry of `images`.
#[derive(Debug, Clone, Deserialize)]
pub struct Image {
    /// COCO image id.
    #[serde(deserialize_with = "numbers::id")]
    pub id: i64,
    /// Name below the split's image folder.
    pub file_name: String,
    /// Pixels.
    #[serde(deserialize_with = "numbers::width")]
    pub width: u32,
    /// Pixels.
    #[serde(deserialize_with = "numbers::height")]
    pub height: u32,
}

/// One entry of `annotations`, without its polygons.
#[derive(Debug, Clone, PartialEq)]
pub struct Annotation {
    /// COCO annotation id.
    pub id: i64,
    /// Image it belongs to.
    pub image_id: i64,
    /// COCO category id (sparse).
    pub category_id: i64,
    /// `[x, y, w, h]`, pixels.
    pub bbox: [f64; 4],
    /// Mask area in pixels; `w * h` where the file has none.
    pub area: f64,
    /// A region of many objects.
    pub iscrowd: bool,
}

/// An annotation as it stands in the file.
#[derive(Deserialize)]
struct AnnotationText<'t> {
    #[serde(deserialize_with = "numbers::id")]
    id: i64,
    #[serde(deserialize_with = "numbers::image_id")]
    image_id: i64,
    #[serde(deserialize_with = "numbers::category_id")]
    category_id: i64,
    bbox: [f64; 4],
    area: Option<f64>,
    #[serde(default, deserialize_with = "numbers::iscrowd")]
    iscrowd: bool,
    /// Never looked into: most of the file, and tells how far the parser is.
    #[serde(borrow, default)]
    segmentation: Option<&'t RawValue>,
}

/// What an entry of the file becomes.
trait Entry<'t>: Deserialize<'t> {
    type Kept;
    fn keep(self, place: &Place) -> Self::Kept;
}

impl<'t> Entry<'t> for AnnotationText<'t> {
    type Kept = Annotation;
    fn keep(self, place: &Place) -> Annotation {
        if let Some(polygons) = self.segmentation {
            place.passed(polygons.get().as_bytes());
        }
        let Self { id, image_id, category_id, bbox, iscrowd, .. } = self;
        Annotation {
            id,
            image_id,
            category_id,
            bbox,
            area: self.area.unwrap_or(bbox[2] * bbox[3]),
            iscrowd,
        }
    }
}

impl Entry<'_> for Image {
    type Kept = Self;
    fn keep(self, _: &Place) -> Self {
        self
    }
}

impl Entry<'_> for Category {
    type Kept = Self;
    fn keep(self, _: &Place) -> Self {
        self
    }
}

/// One entry of `categories`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Category {
    /// COCO category id (sparse).
    #[serde(deserialize_with = "numbers::id")]
    pub id: i64,
    /// Name.
    pub name: String,
}

/// Beginning of the names of files that list images without any boxes, as COCO's test sets.
pub const IMAGES_ALONE: &str = "image_info_";

/// A whole annotation file.
#[derive(Debug, Default)]
pub struct Coco {
    /// In file order.
    pub images: Vec<Image>,
    /// In file order.
    pub annotations: Vec<Annotation>,
    /// Ascending by id: a category's position is its label.
    pub categories: Vec<Category>,
    /// The file has no section `annotations`.
    pub images_alone: bool,
}

/// Opens an annotation file.
///
/// # Errors
/// Anything but a regular file, such as a pipe: the file is read more than once.
pub(crate) fn open(path: &Path) -> Result<File> {
    input::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::InvalidInput => {
            Error::data(path, "whole file", format!("{e}\nhint: save the annotations as a file"))
        }
        _ => Error::io("cannot open", path)(e),
    })
}

/// Reads an annotation file.
///
/// # Errors
/// Anything but a regular file; cut or malformed JSON, a missing or doubled section, a missing
/// field, a wrong type: with the entry's number, line and column.
pub fn read(path: &Path) -> Result<Coco> {
    let file = open(path)?;
    if file.metadata().map_err(Error::io("cannot read", path))?.len() == 0 {
        return Err(Error::data(
            path,
            "whole file",
            "expected COCO annotations (JSON), found an empty file",
        ));
    }
    // SAFETY: the map is read-only and lives as long as this function; a file that another process
    // cuts meanwhile ends this process with SIGBUS, as it does for every program that maps its
    // input.
    let text = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io("cannot map", path))?;
    let _ = text.advise(memmap2::Advice::Sequential);
    let at = Place::new(&text);
    let json = match &text[..] {
        [0xef, 0xbb, 0xbf, rest @ ..] => rest,
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            return Err(Error::data(path, "whole file", "expected UTF-8, found UTF-16"));
        }
        all => all,
    };
    let mut reader = serde_json::Deserializer::from_slice(json);
    let mut coco = Sections(&at)
        .deserialize(&mut reader)
        .map_err(|e| Error::data(path, at.to_string(), e.to_string()))?;
    reader.end().map_err(|e| Error::data(path, "after the last section", e.to_string()))?;
    if coco.images_alone
        && !path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(IMAGES_ALONE))
    {
        return Err(Error::data(path, "whole file", "missing section `annotations`"));
    }
    coco.categories.sort_by_key(|c| c.id);
    Ok(coco)
}

/// Where the parser is, for messages and for the text that is not needed any more.
struct Place<'t> {
    entry: Cell<(&'static str, usize)>,
    text: &'t memmap2::Mmap,
    /// Bytes at the front that were given back.
    released: Cell<usize>,
}

/// Bytes of text that may lie passed and not yet given back.
const WINDOW: usize = 32 << 20;

impl<'t> Place<'t> {
    fn new(text: &'t memmap2::Mmap) -> Self {
        Self { entry: Cell::new(("", 0)), text, released: Cell::new(0) }
    }

    /// The parser has reached `here`, a piece of the text: pages before it need not stay in this
    /// process's memory.
    fn passed(&self, here: &[u8]) {
        let position = (here.as_ptr() as usize).wrapping_sub(self.text.as_ptr() as usize);
        let from = self.released.get();
        if position >= self.text.len() || position < from + WINDOW {
            return;
        }
        let length = (position - from) / 4096 * 4096;
        // SAFETY: a read-only file map: pages that are touched again (strings borrowed from there)
        // come back from the file.
        let _ = unsafe {
            self.text.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, from, length)
        };
        self.released.set(from + length);
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.entry.get() {
            ("", _) => f.write_str("top level"),
            (section, i) => write!(f, "{section}[{i}]"),
        }
    }
}

struct Sections<'p>(&'p Place<'p>);

impl<'de> DeserializeSeed<'de> for Sections<'_> {
    type Value = Coco;
    fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> std::result::Result<Coco, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Sections<'_> {
    type Value = Coco;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `images`, `annotations` and `categories`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Coco, A::Error> {
        let mut coco = Coco::default();
        let mut seen = [false; 3];
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            match key.as_ref() {
                "images" => {
                    once(&mut seen[0], "images")?;
                    map.next_value_seed(Entries::<Image> {
                        section: "images",
                        place: self.0,
                        into: &mut coco.images,
                    })?;
                }
                "annotations" => {
                    once(&mut seen[1], "annotations")?;
                    map.next_value_seed(Entries::<AnnotationText<'de>> {
                        section: "annotations",
                        place: self.0,
                        into: &mut coco.annotations,
                    })?;
                }
                "categories" => {
                    once(&mut seen[2], "categories")?;
                    map.next_value_seed(Entries::<Category> {
                        section: "categories",
                        place: self.0,
                        into: &mut coco.categories,
                    })?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            self.0.entry.set(("", 0));
        }
        coco.images_alone = !seen[1];
        for (found, name) in [(seen[0], "images"), (seen[2], "categories")] {
            if !found {
                return Err(serde::de::Error::custom(format!("missing section `{name}`")));
            }
        }
        Ok(coco)
    }
}

/// A second section of the same name would be added to the first.
fn once<E: serde::de::Error>(seen: &mut bool, section: &str) -> std::result::Result<(), E> {
    if std::mem::replace(seen, true) {
        return Err(E::custom(format!("section `{section}` stands twice")));
    }
    Ok(())
}

/// One array, pushed entry by entry.
struct Entries<'a, 'p, 't, T: Entry<'t>> {
    section: &'static str,
    place: &'p Place<'p>,
    into: &'a mut Vec<T::Kept>,
}

impl<'de, T: Entry<'de>> DeserializeSeed<'de> for Entries<'_, '_, 'de, T> {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> std::result::Result<(), D::Error> {
        self.place.entry.set((self.section, 0));
        d.deserialize_seq(self)
    }
}

impl<'de, T: Entry<'de>> Visitor<'de> for Entries<'_, '_, 'de, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {}", self.section)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<(), A::Error> {
        while let Some(entry) = seq.next_element::<T>()? {
            self.into.push(entry.keep(self.place));
            self.place.entry.set((self.section, self.into.len()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
