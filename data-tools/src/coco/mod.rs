//! `instances_*.json` files, read as a stream: one pass, without segmentations.
//!
//! Memory use is about 80 bytes per annotation. The text is memory-mapped, and its pages are
//! released while it is parsed.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use dw_base::{Error, Result};
use memmap2::{Advice, Mmap};
use serde::de::DeserializeSeed;

use crate::input;

mod entries;
mod numbers;
mod parser;
mod position;

pub use entries::{Annotation, Category, Coco, Image};
use parser::Sections;
use position::Position;

/// Prefix of annotation files that list images without annotations, such as those of COCO's test
/// sets.
pub const IMAGES_ONLY_PREFIX: &str = "image_info_";

/// Opens an annotation file.
///
/// # Errors
/// Anything but a regular file, such as a pipe, because the file is read more than once.
pub(crate) fn open(path: &Path) -> Result<File> {
    input::open(path).map_err(|e| match e.kind() {
        ErrorKind::InvalidInput => {
            Error::data(path, "whole file", format!("{e}\nhint: save the annotations as a file"))
        }
        _ => Error::io("cannot open", path)(e),
    })
}

/// Reads an annotation file.
///
/// # Errors
/// Anything but a regular file; truncated or malformed JSON, a missing or repeated section, a
/// missing field or a wrong type, with the number of the entry, line and column.
pub fn read(path: &Path) -> Result<Coco> {
    let file = open(path)?;
    if file.metadata().map_err(Error::io("cannot read", path))?.len() == 0 {
        return Err(Error::data(
            path,
            "whole file",
            "expected COCO annotations (JSON), found an empty file",
        ));
    }
    // SAFETY: the map is read-only and dropped at the end of this function. If another process
    // truncates the file meanwhile, this process ends with SIGBUS, as with any mapped input.
    let text = unsafe { Mmap::map(&file) }.map_err(Error::io("cannot map", path))?;
    let _ = text.advise(Advice::Sequential);
    let at = Position::new(&text);
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
    if coco.images_only
        && !path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(IMAGES_ONLY_PREFIX))
    {
        return Err(Error::data(path, "whole file", "missing section `annotations`"));
    }
    coco.categories.sort_by_key(|c| c.id);
    Ok(coco)
}

#[cfg(test)]
mod tests;
