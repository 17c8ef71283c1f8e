//! Streaming parser of annotation files: one pass, without a tree of JSON values.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::entries::{Annotation, Category, Coco, Image};
use super::numbers;
use super::position::Position;

/// An annotation as written in the file.
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
    #[serde(default, deserialize_with = "numbers::ignore")]
    ignore: bool,
    /// Not parsed, although it makes up most of the file. Its address tells the parser's position.
    #[serde(borrow, default)]
    segmentation: Option<&'t RawValue>,
}

/// An entry of a section of the file, and the type it is converted to.
trait Entry<'t>: Deserialize<'t> {
    type Output;
    fn convert(self, position: &Position) -> Self::Output;
}

impl<'t> Entry<'t> for AnnotationText<'t> {
    type Output = Annotation;
    fn convert(self, position: &Position) -> Annotation {
        if let Some(segmentation) = self.segmentation {
            position.release_before(segmentation.get().as_bytes());
        }
        let Self { id, image_id, category_id, bbox, iscrowd, ignore, .. } = self;
        Annotation {
            id,
            image_id,
            category_id,
            bbox,
            area: self.area.unwrap_or(bbox[2] * bbox[3]),
            iscrowd,
            ignore,
        }
    }
}

impl Entry<'_> for Image {
    type Output = Self;
    fn convert(self, _: &Position) -> Self {
        self
    }
}

impl Entry<'_> for Category {
    type Output = Self;
    fn convert(self, _: &Position) -> Self {
        self
    }
}

/// Visitor of the top-level object.
pub(super) struct Sections<'p>(pub(super) &'p Position<'p>);

impl<'de> DeserializeSeed<'de> for Sections<'_> {
    type Value = Coco;
    fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> Result<Coco, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Sections<'_> {
    type Value = Coco;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `images`, `annotations` and `categories`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Coco, A::Error> {
        let mut coco = Coco::default();
        let mut seen = [false; 3];
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match key.as_ref() {
                "images" => {
                    once(&mut seen[0], "images")?;
                    map.next_value_seed(Entries::<Image> {
                        section: "images",
                        position: self.0,
                        into: &mut coco.images,
                    })?;
                }
                "annotations" => {
                    once(&mut seen[1], "annotations")?;
                    map.next_value_seed(Entries::<AnnotationText<'de>> {
                        section: "annotations",
                        position: self.0,
                        into: &mut coco.annotations,
                    })?;
                }
                "categories" => {
                    once(&mut seen[2], "categories")?;
                    map.next_value_seed(Entries::<Category> {
                        section: "categories",
                        position: self.0,
                        into: &mut coco.categories,
                    })?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            self.0.entry.set(("", 0));
        }
        coco.images_only = !seen[1];
        for (found, name) in [(seen[0], "images"), (seen[2], "categories")] {
            if !found {
                return Err(serde::de::Error::custom(format!("missing section `{name}`")));
            }
        }
        Ok(coco)
    }
}

/// Rejects a repeated section, whose entries would be appended to those of the first.
fn once<E: serde::de::Error>(seen: &mut bool, section: &str) -> Result<(), E> {
    if std::mem::replace(seen, true) {
        return Err(E::custom(format!("expected one section `{section}`, found a second one")));
    }
    Ok(())
}

/// Visitor of one section: an array whose entries are appended to `into`.
struct Entries<'a, 'p, 't, T: Entry<'t>> {
    section: &'static str,
    position: &'p Position<'p>,
    into: &'a mut Vec<T::Output>,
}

impl<'de, T: Entry<'de>> DeserializeSeed<'de> for Entries<'_, '_, 'de, T> {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        self.position.entry.set((self.section, 0));
        d.deserialize_seq(self)
    }
}

impl<'de, T: Entry<'de>> Visitor<'de> for Entries<'_, '_, 'de, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {}", self.section)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(entry) = seq.next_element::<T>()? {
            self.into.push(entry.convert(self.position));
            self.position.entry.set((self.section, self.into.len()));
        }
        Ok(())
    }
}
