//! `instances_*.json` read as a stream: one pass, no tree, polygons skipped.
//!
//! Memory is about 70 bytes an annotation; the text itself is memory-mapped.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::path::Path;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// One entry of `images`.
#[derive(Debug, Clone, Deserialize)]
pub struct Image {
    /// COCO image id.
    pub id: i64,
    /// Name below the split's image folder.
    pub file_name: String,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
}

/// One entry of `annotations`, without its polygons.
#[derive(Debug, Clone, PartialEq, Deserialize)]
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
    #[serde(default = "missing_area")]
    pub area: f64,
    /// 1 for a region of many objects.
    #[serde(default)]
    pub iscrowd: u8,
}

fn missing_area() -> f64 {
    f64::NAN
}

/// One entry of `categories`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Category {
    /// COCO category id (sparse).
    pub id: i64,
    /// Name.
    pub name: String,
}

/// A whole annotation file.
#[derive(Debug, Default)]
pub struct Coco {
    /// In file order.
    pub images: Vec<Image>,
    /// In file order.
    pub annotations: Vec<Annotation>,
    /// Ascending by id: a category's position is its label.
    pub categories: Vec<Category>,
}

/// Reads an annotation file.
///
/// # Errors
/// Cut or malformed JSON, a missing section or field, a wrong type: with the entry's number, line and column.
pub fn read(path: &Path) -> Result<Coco> {
    let file = File::open(path).map_err(Error::io("cannot open", path))?;
    if file.metadata().map_err(Error::io("cannot read", path))?.len() == 0 {
        return Err(Error::data(path, "whole file", "expected COCO annotations (JSON), found an empty file"));
    }
    // SAFETY: the map is read-only and lives as long as this function; a file that another process cuts
    // meanwhile ends this process with SIGBUS, as it does for every program that maps its input.
    let text = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io("cannot map", path))?;
    let _ = text.advise(memmap2::Advice::Sequential);
    let at = Place::default();
    let mut reader = serde_json::Deserializer::from_slice(&text);
    let mut coco = Sections(&at).deserialize(&mut reader).map_err(|e| Error::data(path, at.to_string(), e.to_string()))?;
    reader.end().map_err(|e| Error::data(path, "after the last section", e.to_string()))?;
    for a in &mut coco.annotations {
        if a.area.is_nan() {
            a.area = a.bbox[2] * a.bbox[3];
        }
    }
    coco.categories.sort_by_key(|c| c.id);
    Ok(coco)
}

/// Where the parser is, for messages.
struct Place(Cell<(&'static str, usize)>);

impl Default for Place {
    fn default() -> Self {
        Self(Cell::new(("", 0)))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.get() {
            ("", _) => f.write_str("top level"),
            (section, i) => write!(f, "{section}[{i}]"),
        }
    }
}

struct Sections<'p>(&'p Place);

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
                    seen[0] = true;
                    map.next_value_seed(Entries { section: "images", place: self.0, into: &mut coco.images })?;
                }
                "annotations" => {
                    seen[1] = true;
                    map.next_value_seed(Entries { section: "annotations", place: self.0, into: &mut coco.annotations })?;
                }
                "categories" => {
                    seen[2] = true;
                    map.next_value_seed(Entries { section: "categories", place: self.0, into: &mut coco.categories })?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            self.0.0.set(("", 0));
        }
        for (found, name) in seen.into_iter().zip(["images", "annotations", "categories"]) {
            if !found {
                return Err(serde::de::Error::custom(format!("missing section `{name}`")));
            }
        }
        Ok(coco)
    }
}

/// One array, pushed entry by entry.
struct Entries<'a, 'p, T> {
    section: &'static str,
    place: &'p Place,
    into: &'a mut Vec<T>,
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Entries<'_, '_, T> {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> std::result::Result<(), D::Error> {
        self.place.0.set((self.section, 0));
        d.deserialize_seq(self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<'_, '_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {}", self.section)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<(), A::Error> {
        while let Some(entry) = seq.next_element::<T>()? {
            self.into.push(entry);
            self.place.0.set((self.section, self.into.len()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Coco> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("instances_x.json");
        fs_err::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn sections_in_any_order_and_unknown_fields() {
        let coco = parse(
            r#"{"info":{"x":[1]},"annotations":[{"id":7,"image_id":3,"category_id":9,"bbox":[1,2,3.5,4],"segmentation":[[1,2]]}],
                "categories":[{"id":9,"name":"b"},{"id":2,"name":"a","supercategory":"s"}],
                "images":[{"id":3,"file_name":"a.jpg","width":10,"height":20}]}"#,
        )
        .unwrap();
        assert_eq!(coco.categories.iter().map(|c| c.id).collect::<Vec<_>>(), [2, 9], "labels follow ascending ids");
        assert_eq!(coco.annotations[0].area, 14.0, "area falls back to w * h");
    }

    #[test]
    fn messages_name_entry_and_field() {
        let text = r#"{"images":[],"categories":[],"annotations":[{"id":1,"image_id":1,"category_id":1,"bbox":[0,0,1,1]},{"id":2,"image_id":1,"bbox":[0,0,1,1]}]}"#;
        let e = parse(text).unwrap_err().to_string();
        assert!(e.contains("annotations[1]") && e.contains("category_id"), "{e}");
        let e = parse(&text[..text.len() / 2]).unwrap_err().to_string();
        assert!(e.contains("annotations[0]") && e.contains("EOF"), "{e}");
        let e = parse(r#"{"images":[],"annotations":[]}"#).unwrap_err().to_string();
        assert!(e.contains("missing section `categories`"), "{e}");
        let e = parse("[]").unwrap_err().to_string();
        assert!(e.contains("expected an object"), "{e}");
    }
}
