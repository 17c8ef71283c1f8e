//! Source images: reading, checking and encoding.

use std::path::Path;

use dw_base::text::shown;
use dw_base::{Error, names};

use super::options::Options;
use crate::coco::{Coco, Image};
use crate::format::{Annotations, Entry, GtBox, encode_record};
use crate::input::{self, BadImages, Folder};
use crate::pixels::exif::{displayed, turn, turn_box};
use crate::pixels::{self, Codec, Decoded, Exif, ExifBoxes, Layout, Rgb, damaged, is_jpeg};

const HINT: &str = "hint: `--allow-outside` packs images from outside the folder of the split too";

/// An encoded image.
pub(super) struct Encoded {
    pub(super) record: Vec<u8>,
    pub(super) entry: Entry,
    /// The damage of a JPEG file that is packed nevertheless.
    pub(super) damage: Option<String>,
    /// Whether the file has faults that leave its pixels intact.
    pub(super) repaired: bool,
    /// Whether it has an EXIF orientation other than 1 that is ignored.
    pub(super) rotated: bool,
    /// Whether it was rotated or mirrored according to its EXIF orientation.
    pub(super) turned: bool,
    /// Whether its alpha channel was dropped.
    pub(super) alpha: bool,
    /// Highest sample of a 16-bit image.
    pub(super) max_16_bit: Option<u16>,
}

/// Why an image cannot be packed.
pub(super) enum Unusable {
    /// Missing, damaged or not of the annotated size: `--bad-images` applies.
    Bad(String),
    /// Outside the image folder, or an error of the machine: an error under every policy.
    Always(Error),
}

/// The image folder of a split.
pub(super) struct ImageFolder(Folder);

/// Checks every `file_name` of an annotation file.
///
/// # Errors
/// The first one that is not a file name, or leaves the image folder without `--allow-outside`.
pub(super) fn check_names(coco: &Coco, json: &Path, allow_outside: bool) -> dw_base::Result<()> {
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

/// The file name stored in a pack. Components that lead out of the image folder (`--allow-outside`)
/// are removed, so that stored names never do. `None` if nothing remains.
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
    pub(super) fn new(folder: &Path, allow_outside: bool) -> dw_base::Result<Self> {
        Folder::open(folder, allow_outside).map(Self)
    }

    /// Whether the file of an image exists.
    pub(super) fn contains(&self, image: &Image) -> bool {
        self.0.path().join(&image.file_name).is_file()
    }

    /// Reads the file of an image.
    fn read(&self, image: &Image) -> Result<Vec<u8>, Unusable> {
        let path = self.0.path().join(&image.file_name);
        let unreadable = |e: std::io::Error| {
            if input::is_of_machine(&e) {
                return Unusable::Always(Error::io("cannot read", &path)(e));
            }
            let path = shown(path.display());
            Unusable::Bad(format!("{path}: image {} cannot be read: {e}", image.id))
        };
        let bytes = self.0.read(&image.file_name, input::MAX_IMAGE_BYTES).map_err(unreadable)?;
        bytes.ok_or_else(|| Unusable::Always(self.0.outside(&image.file_name)))
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
    ) -> Result<Encoded, Unusable> {
        let bytes = self.read(image)?;
        let of_image = |problem: String| {
            let path = self.0.path().join(&image.file_name);
            format!("{}: image {} {problem}", shown(path.display()), image.id)
        };
        let may_be_undecided = match o.exif {
            None => image.measured,
            Some(Exif::Apply) => o.exif_boxes.is_none(),
            Some(Exif::Ignore) => false,
        };
        if may_be_undecided {
            self.check_orientation(image, &bytes, o)?;
        }
        let mut encoded = encode(image, bytes, boxes, o).map_err(|p| Unusable::Bad(of_image(p)))?;
        encoded.damage = encoded.damage.map(of_image);
        Ok(encoded)
    }

    /// Checks that the options say what the boxes of an image with an EXIF orientation refer to, if
    /// its annotated size does not. It is no bad image: how to treat it is for the user to say.
    fn check_orientation(&self, image: &Image, bytes: &[u8], o: &Options) -> Result<(), Unusable> {
        let found = pixels::orientation(bytes).filter(|o| (2..=8).contains(o));
        let Some(found) = found else { return Ok(()) };
        let same = |(w, h): (usize, usize)| {
            let annotated = (image.width as usize, image.height as usize);
            annotated == (w, h) && annotated == displayed((w, h), found)
        };
        let problem = match o.exif {
            None => format!(
                "image {} has the EXIF orientation {found}, and its annotations have no image size \
                 to tell whether the boxes refer to the stored pixels or to the displayed image\n\
                 hint: `--exif apply --exif-boxes displayed` for boxes of the displayed image, \
                 `--exif apply --exif-boxes stored` or `--exif ignore` for boxes of the stored \
                 pixels",
                image.id
            ),
            Some(_) if pixels::file_size(bytes).is_ok_and(same) => {
                format!(
                    "image {} has the EXIF orientation {found} and the same size stored and \
                     displayed: its boxes can refer to either\n\
                     hint: say which with `--exif-boxes stored` or `--exif-boxes displayed`",
                    image.id
                )
            }
            Some(_) => return Ok(()),
        };
        let path = self.0.path().join(&image.file_name);
        Err(Unusable::Always(Error::data(&path, "", problem)))
    }
}

/// The problem of an image whose size is not the annotated one.
fn size_problem(image: &Image, orientation: u32, (w, h): (usize, usize)) -> String {
    let expected = (image.width as usize, image.height as usize);
    let text = format!(
        "is {w} x {h} pixels, expected {} x {} (`width`, `height` in the annotations)",
        expected.0, expected.1
    );
    if displayed((w, h), orientation) != expected {
        return text;
    }
    format!(
        "{text}: the file has the EXIF orientation {orientation} and the annotations are those of \
         the rotated image, but training uses the stored pixels\n\
         hint: `--exif apply` turns the pixels"
    )
}

/// How an image is rotated or mirrored.
#[derive(Clone, Copy)]
struct Turn {
    /// EXIF orientation, 1 to 8; 1 leaves the image as it is.
    orientation: u32,
    /// Whether the boxes turn too.
    boxes: bool,
}

/// Checks the size of an image and decides how it is turned. `found` is its EXIF orientation,
/// `stored` its size before turning.
fn plan(image: &Image, found: u32, stored: (usize, usize), o: &Options) -> Result<Turn, String> {
    let annotated = (image.width as usize, image.height as usize);
    let turn = |boxes| Ok(Turn { orientation: found, boxes });
    if o.exif != Some(Exif::Apply) || !(2..=8).contains(&found) {
        let as_is = Turn { orientation: 1, boxes: false };
        return (annotated == stored)
            .then_some(as_is)
            .ok_or_else(|| size_problem(image, found, stored));
    }
    match (annotated == stored, annotated == displayed(stored, found)) {
        (true, false) => turn(true),
        (false, true) => turn(false),
        (false, false) => Err(size_problem(image, 1, stored)),
        // Without the option, `ImageFolder::check_orientation` has failed.
        (true, true) => turn(o.exif_boxes == Some(ExifBoxes::Stored)),
    }
}

/// Checks and encodes an image.
///
/// # Errors
/// The problem, as a phrase that follows the name of the image in a message.
fn encode(image: &Image, bytes: Vec<u8>, boxes: &[GtBox], o: &Options) -> Result<Encoded, String> {
    let stored = pixels::file_size(&bytes).map_err(undecodable)?;
    let found = pixels::orientation(&bytes).unwrap_or(1);
    let plan = plan(image, found, stored, o)?;
    let turned = plan.orientation != 1;
    let too_large = o.max_side > 0 && image.width.max(image.height) > o.max_side;
    let as_it_is = o.codec == Codec::Jpeg && is_jpeg(&bytes) && !too_large && !turned;
    let read = read_pixels(bytes, as_it_is, o.bad_images).map_err(undecodable)?;
    let (mut max_16_bit, mut alpha) = (None, false);
    let (layout, size, pixels) = match read.pixels {
        None => (Layout::Jpeg, stored, read.bytes),
        Some(mut decoded) => {
            (max_16_bit, alpha) = (decoded.max_16_bit, decoded.alpha);
            if turned {
                decoded.rgb = turn(decoded.rgb, plan.orientation)?;
            }
            if too_large {
                decoded.rgb = resize(decoded.rgb, o.max_side)?;
            }
            // The planes in the file can be used only if the pixels are unchanged.
            let source = if turned || too_large { &[] } else { &read.bytes[..] };
            let rgb = decoded.rgb;
            let (layout, pixels) =
                pixels::encode_zstd(source, &rgb, o.level).map_err(undecodable)?;
            (layout, (rgb.width, rgb.height), pixels)
        }
    };
    let boxes = turned_boxes(boxes, stored, plan);
    let crowd = boxes.iter().filter(|b| b.crowd).count() as u32;
    let original = displayed(stored, plan.orientation);
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
        original_width: original.0 as u32,
        original_height: original.1 as u32,
    };
    let file_name =
        stored_name(&image.file_name).ok_or("has a `file_name` that is not a file name")?;
    let annotations = Annotations { file_name, boxes };
    let (record, crc) = encode_record(image.id, layout.code(), &annotations, &pixels, o.level)
        .map_err(|e| format!("cannot be packed: {e}"))?;
    entry.crc = crc;
    let rotated = (2..=8).contains(&found) && !turned;
    let (damage, repaired) = (read.damage, read.repaired);
    Ok(Encoded { record, entry, damage, repaired, rotated, turned, alpha, max_16_bit })
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn undecodable(problem: String) -> String {
    format!("cannot be decoded: {problem}")
}

/// An image file that was read.
struct Read {
    /// The file, repaired if it needed to be.
    bytes: Vec<u8>,
    /// `None` for a JPEG file that is stored as it is.
    pixels: Option<Decoded>,
    repaired: bool,
    damage: Option<String>,
}

/// Decodes an image file, or checks a JPEG file that will be stored as it is.
///
/// # Errors
/// The message of the decoder.
fn read_pixels(bytes: Vec<u8>, as_it_is: bool, bad: BadImages) -> Result<Read, String> {
    let read = if as_it_is {
        pixels::jpeg::check(&bytes).map(|()| None)
    } else {
        pixels::decode_source(&bytes).map(Some)
    };
    let intact = |bytes, pixels, repaired| Read { bytes, pixels, repaired, damage: None };
    let problem = match read {
        Ok(Some(decoded)) if decoded.repaired => {
            let mended = damaged::repair(&bytes).unwrap_or(bytes);
            return Ok(intact(mended, Some(decoded), true));
        }
        Ok(pixels) => return Ok(intact(bytes, pixels, false)),
        Err(problem) => problem,
    };
    if as_it_is
        && let Some(mended) = damaged::repair(&bytes)
        && pixels::jpeg::check(&mended).is_ok()
    {
        return Ok(intact(mended, None, true));
    }
    if bad != BadImages::Keep || !is_jpeg(&bytes) {
        return Err(problem);
    }
    let (rgb, damage) = damaged::decode(&bytes)?;
    let pixels = Some(Decoded { rgb, max_16_bit: None, alpha: false, repaired: false });
    Ok(Read { bytes, pixels, repaired: false, damage: Some(format!("is damaged: {damage}")) })
}

/// The boxes of an image, turned if `plan.boxes` is set.
fn turned_boxes(boxes: &[GtBox], stored: (usize, usize), plan: Turn) -> Vec<GtBox> {
    let size = (stored.0 as f64, stored.1 as f64);
    let mut boxes = boxes.to_vec();
    if plan.boxes {
        for b in &mut boxes {
            b.bbox = turn_box(b.bbox, size, plan.orientation);
        }
    }
    boxes
}

/// Resizes to a longer side of `max_side` pixels with a triangle filter.
fn resize(rgb: Rgb, max_side: u32) -> Result<Rgb, String> {
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
