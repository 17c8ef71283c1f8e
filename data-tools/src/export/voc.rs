//! Pascal VOC annotations: `Annotations/NAME.xml`, `ImageSets/Main/SPLIT.txt`.

use std::fmt::Write;
use std::path::Path;

use dw_base::text::shown;
use dw_base::{Error, Result};

use super::Image;
use crate::format::GtBox;
use crate::pixels::EXTENSIONS;
use crate::reader::Split;
use crate::sources::listing::stem;

/// Writes the annotation files and the list of a split. Crowd regions are marked as difficult,
/// which has the same meaning in VOC's metric.
pub(super) fn write(split: &Split, images: &[Image], dir: &Path) -> Result<()> {
    let (annotations, lists) = (dir.join("Annotations"), dir.join("ImageSets/Main"));
    let stems: Vec<&str> = images.iter().map(|i| id(split, i)).collect::<Result<_>>()?;
    let names: Vec<String> = stems.iter().map(|s| format!("{s}.xml")).collect();
    super::create(&annotations)?;
    super::create_folders(&annotations, &names)?;
    super::create(&lists)?;
    for (image, name) in images.iter().zip(&names) {
        super::write_text(&annotations.join(name), &xml(split, image)?)?;
    }
    let list: String = stems.iter().flat_map(|s| [s, "\n"]).collect();
    super::write_text(&lists.join(format!("{}.txt", split.meta.split)), &list)
}

/// The name of an image in lists: its file name without extension.
fn id<'a>(split: &Split, image: &'a Image) -> Result<&'a str> {
    let id = stem(&image.file_name, &EXTENSIONS).unwrap_or(&image.file_name);
    if id.trim() != id || id.contains(['\n', '\r']) {
        let problem = format!(
            "`{}` begins or ends with a space or has a line break, which a list of VOC cannot hold",
            shown(&image.file_name)
        );
        return Err(Error::data(split.path(), format!("image {}", image.id), problem));
    }
    Ok(id)
}

/// The annotation file of an image.
fn xml(split: &Split, image: &Image) -> Result<String> {
    let text = |t: &str| {
        escaped(t).ok_or_else(|| {
            let problem = format!("`{}` has a character that XML cannot hold", shown(t));
            Error::data(split.path(), format!("image {}", image.id), problem)
        })
    };
    let mut out = format!(
        "<annotation>\n  <filename>{}</filename>\n  <size>\n    <width>{}</width>\n    \
         <height>{}</height>\n    <depth>3</depth>\n  </size>\n",
        text(&image.file_name)?,
        image.width,
        image.height
    );
    for b in &image.boxes {
        let name = split.categories().get(b.label as usize).map_or("", |c| &c.name);
        object(&mut out, &text(name)?, b);
    }
    out.push_str("</annotation>\n");
    Ok(out)
}

/// Appends an object. Its corners count pixels from 1, and both ends are inclusive.
fn object(out: &mut String, name: &str, b: &GtBox) {
    let [x, y, w, h] = b.bbox;
    // Writing to a string does not fail.
    let _ = write!(
        out,
        "  <object>\n    <name>{name}</name>\n    <difficult>{}</difficult>\n    <bndbox>\n      \
         <xmin>{}</xmin>\n      <ymin>{}</ymin>\n      <xmax>{}</xmax>\n      \
         <ymax>{}</ymax>\n    </bndbox>\n  </object>\n",
        u8::from(b.crowd),
        x + 1.0,
        y + 1.0,
        x + w,
        y + h
    );
}

/// Escapes text for the content of an element; `None` if XML cannot represent it.
fn escaped(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => return None,
            c => out.push(c),
        }
    }
    Some(out)
}
