//! Source images: reading, checking and encoding.

use std::path::{Path, PathBuf};

use dw_base::text::shown;
use dw_base::{Error, Result, names};

use super::options::Options;
use crate::coco::{Coco, Image};
use crate::format::{Annotations, Entry, GtBox, encode_record};
use crate::input;
use crate::pixels::{self, Codec, Layout, Rgb, is_jpeg};

const HINT: &str = "hint: `--allow-outside` packs images from outside the folder of the split too";

/// An encoded image.
pub(super) struct Encoded {
    pub(super) record: Vec<u8>,
    pub(super) entry: Entry,
    /// Whether its EXIF orientation is not 1.
    pub(super) rotated: bool,
    /// Highest sample of a 16-bit PNG.
    pub(super) max_16_bit: Option<u16>,
}

/// Why an image cannot be packed.
pub(super) enum Unusable {
    /// Missing, damaged or of another size: subject to `--bad-images`.
    Bad(String),
    /// Outside the image folder: an error under every policy.
    Outside(Error),
}

/// The image folder of a split.
pub(super) struct ImageFolder {
    /// Path as given.
    folder: PathBuf,
    /// Path with symbolic links resolved.
    root: PathBuf,
    allow_outside: bool,
}

/// Checks every `file_name` of an annotation file.
///
/// # Errors
/// The first one that is not a file name, or leaves the image folder without `--allow-outside`.
pub(super) fn check_names(coco: &Coco, json: &Path, allow_outside: bool) -> Result<()> {
    for (n, image) in coco.images.iter().enumerate() {
        let name = &image.file_name;
        let problem = match names::relative(name) {
            Err(_) if allow_outside && stored_name(name).is_some() => continue,
            Err(problem) if stored_name(name).is_some() => format!("{problem}\n{HINT}"),
            Err(problem) => problem,
            Ok(()) => continue,
        };
        let place = format!("images[{n}] (id {})", image.id);
        return Err(Error::data(json, place, format!("`file_name` `{}` {problem}", shown(name))));
    }
    Ok(())
}

/// The file name stored in a pack: without the components that leave the image folder
/// (`--allow-outside`), so that stored names never do. `None` if nothing remains.
fn stored_name(name: &str) -> Option<String> {
    if names::relative(name).is_ok() {
        return Some(name.to_owned());
    }
    let mut inside: Vec<&str> = vec![];
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(inside.pop()),
            part => inside.push(part),
        }
    }
    let kept = inside.join("/");
    names::relative(&kept).is_ok().then_some(kept)
}

impl ImageFolder {
    /// The image folder `folder`, which may be a symbolic link.
    ///
    /// # Errors
    /// A folder that cannot be opened.
    pub(super) fn new(folder: PathBuf, allow_outside: bool) -> Result<Self> {
        let root = std::fs::canonicalize(&folder).map_err(Error::io("cannot open", &folder))?;
        Ok(Self { folder, root, allow_outside })
    }

    /// Whether the file of an image exists.
    pub(super) fn contains(&self, image: &Image) -> bool {
        self.folder.join(&image.file_name).is_file()
    }

    /// Reads the file of an image.
    fn read(&self, image: &Image) -> std::result::Result<Vec<u8>, Unusable> {
        let path = self.folder.join(&image.file_name);
        let unreadable = |e: std::io::Error| {
            let path = shown(path.display());
            Unusable::Bad(format!("{path}: image {} cannot be read: {e}", image.id))
        };
        if self.allow_outside {
            return input::read(&path, input::MAX_IMAGE_BYTES).map_err(unreadable);
        }
        // Reading the resolved path leaves no link that could be changed after the check.
        if let Some(real) = input::resolve_inside(&self.root, &path).map_err(unreadable)? {
            return input::read(&real, input::MAX_IMAGE_BYTES).map_err(unreadable);
        }
        let root = shown(self.root.display());
        let problem = format!("is a symbolic link to a file outside {root}\n{HINT}");
        let place = format!("image {}", image.id);
        Err(Unusable::Outside(Error::data(&path, place, problem)))
    }

    /// Reads, checks and encodes an image.
    ///
    /// # Errors
    /// The problem, and whether the policy applies to it.
    pub(super) fn encode(
        &self,
        image: &Image,
        boxes: &[GtBox],
        o: &Options,
    ) -> std::result::Result<Encoded, Unusable> {
        let bytes = self.read(image)?;
        let bad = |problem: String| {
            let path = self.folder.join(&image.file_name);
            let path = shown(path.display());
            Unusable::Bad(format!("{path}: image {} {problem}", image.id))
        };
        encode(image, bytes, boxes, o).map_err(bad)
    }
}

/// The problem of an image whose size is not the annotated one; `None` if it is.
fn size_problem(image: &Image, bytes: &[u8], found: (usize, usize)) -> Option<String> {
    let expected = (image.width as usize, image.height as usize);
    if found == expected {
        return None;
    }
    let (w, h) = found;
    let text = format!(
        "is {w} x {h} pixels, expected {} x {} (`width`, `height` in the annotations)",
        expected.0, expected.1
    );
    // EXIF orientations 5 to 8 exchange width and height.
    let swapped = pixels::orientation(bytes).filter(|o| (5..=8).contains(o) && (h, w) == expected);
    let Some(orientation) = swapped else { return Some(text) };
    Some(format!(
        "{text}: the file has the EXIF orientation {orientation} and the annotations are those of \
         the rotated image, but training uses the stored pixels\n\
         hint: rotate the files, for example with `mogrify -auto-orient` or `exiftran -ai`"
    ))
}

/// Checks and encodes an image.
///
/// # Errors
/// The problem, worded to follow the name of the image.
fn encode(
    image: &Image,
    bytes: Vec<u8>,
    boxes: &[GtBox],
    o: &Options,
) -> std::result::Result<Encoded, String> {
    let undecodable = |e: String| format!("cannot be decoded: {e}");
    let size = pixels::file_size(&bytes).map_err(undecodable)?;
    if let Some(problem) = size_problem(image, &bytes, size) {
        return Err(problem);
    }
    let rotated = pixels::orientation(&bytes).is_some_and(|o| o != 1);
    let too_large = o.max_side > 0 && image.width.max(image.height) > o.max_side;
    let mut max_16_bit = None;
    let (layout, size, pixels) = if o.codec == Codec::Jpeg && is_jpeg(&bytes) && !too_large {
        pixels::jpeg::check(&bytes).map_err(undecodable)?;
        (Layout::Jpeg, size, bytes)
    } else {
        let (mut rgb, max_sample) = pixels::decode_with_depth(&bytes).map_err(undecodable)?;
        max_16_bit = max_sample;
        let mut source = &bytes[..];
        if too_large {
            rgb = resize(rgb, o.max_side)?;
            source = &[];
        }
        let (layout, pixels) = pixels::encode_zstd(source, &rgb, o.level).map_err(undecodable)?;
        (layout, (rgb.width, rgb.height), pixels)
    };
    let crowd = boxes.iter().filter(|b| b.crowd).count() as u32;
    let mut entry = Entry {
        offset: 0,
        length: 0,
        image_id: image.id,
        shard: 0,
        width: size.0 as u32,
        height: size.1 as u32,
        boxes: boxes.len() as u32 - crowd,
        crowd,
        crc: 0,
        original_width: image.width,
        original_height: image.height,
    };
    let file_name =
        stored_name(&image.file_name).ok_or("has a `file_name` that is not a file name")?;
    let annotations = Annotations { file_name, boxes: boxes.to_vec() };
    let (record, crc) = encode_record(image.id, layout.code(), &annotations, &pixels, o.level)
        .map_err(|e| format!("cannot be packed: {e}"))?;
    entry.crc = crc;
    Ok(Encoded { record, entry, rotated, max_16_bit })
}

/// Resizes to a longer side of `max_side` pixels with a triangle filter.
fn resize(rgb: Rgb, max_side: u32) -> std::result::Result<Rgb, String> {
    let scale = f64::from(max_side) / rgb.width.max(rgb.height) as f64;
    let scaled = |n: usize| ((n as f64 * scale).round() as u32).max(1);
    let (w, h) = (scaled(rgb.width), scaled(rgb.height));
    let source = image::RgbImage::from_raw(rgb.width as u32, rgb.height as u32, rgb.data)
        .ok_or("has an unexpected number of pixel bytes")?;
    let small = image::imageops::resize(&source, w, h, image::imageops::FilterType::Triangle);
    Ok(Rgb { width: w as usize, height: h as usize, data: small.into_raw() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_names_stay_inside_the_folder() {
        for (name, kept) in [
            ("a.jpg", Some("a.jpg")),
            ("./x/a.jpg", Some("./x/a.jpg")),
            ("/data/x/a.jpg", Some("data/x/a.jpg")),
            ("../x/../a.jpg", Some("a.jpg")),
            ("", None),
            ("/", None),
            ("..", None),
            ("a\0b", None),
        ] {
            assert_eq!(stored_name(name).as_deref(), kept, "{name:?}");
        }
    }
}
