//! Source images: JPEG files through libjpeg-turbo, PNG, WebP, BMP and TIFF files through `image`.

use std::io::Cursor;

use image::DynamicImage::{
    ImageLuma16, ImageLumaA16, ImageRgb16, ImageRgb32F, ImageRgba16, ImageRgba32F,
};
use image::codecs::webp::WebPDecoder;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::damaged;
use super::jpeg::{self, is_jpeg};
use super::layout::{MAX_PIXELS, Rgb, check_size};

/// Extensions (in lower case) of files that count as images where the annotations do not name the
/// image files.
pub const EXTENSIONS: [&str; 9] =
    ["bmp", "jfif", "jpe", "jpeg", "jpg", "png", "tif", "tiff", "webp"];

/// A decoded source image.
#[derive(Debug)]
pub struct Decoded {
    /// The pixels.
    pub rgb: Rgb,
    /// Highest sample of a 16-bit image before it is scaled to 8 bits, alpha excluded.
    pub max_16_bit: Option<u16>,
    /// Whether the file has an alpha channel, which is dropped.
    pub alpha: bool,
    /// Whether it is a JPEG file with faults that leave its pixels intact ([`damaged::repair`]).
    pub repaired: bool,
}

/// Size (width, height) of an image file, read from its header.
///
/// # Errors
/// Another format, or a damaged header.
pub fn file_size(bytes: &[u8]) -> Result<(usize, usize), String> {
    if is_jpeg(bytes) {
        return damaged::size(bytes);
    }
    let size = reader(bytes)?.into_dimensions();
    size.map(|(w, h)| (w as usize, h as usize)).map_err(|e| e.to_string())
}

/// EXIF orientation of an image file, `None` if it has none. 1 means displayed as stored; 5 to 8
/// swap width and height on display; values outside 1 to 8 are invalid. [`decode_file`] ignores the
/// orientation, as COCO's tools do.
pub fn orientation(bytes: &[u8]) -> Option<u32> {
    let mut reader = exif::Reader::new();
    // Faults in other fields do not matter.
    reader.continue_on_error(true);
    let partial = |e: exif::Error| e.distill_partial_result(|_| {});
    let exif = reader.read_from_container(&mut Cursor::new(bytes)).or_else(partial);
    let exif = exif.ok().or_else(|| reader.read_raw(webp_exif(bytes)?).or_else(partial).ok())?;
    exif.get_field(exif::Tag::Orientation, exif::In::PRIMARY)?.value.get_uint(0)
}

/// The EXIF data of a WebP file in which they begin as in a JPEG file, as some programs write them.
fn webp_exif(bytes: &[u8]) -> Option<Vec<u8>> {
    let data = WebPDecoder::new(Cursor::new(bytes)).ok()?.exif_metadata().ok()??;
    data.strip_prefix(b"Exif\0\0").map(<[u8]>::to_vec)
}

/// Decodes an image file. Grey, palette and CMYK images are converted to RGB, 16-bit samples are
/// scaled to 8 bits, alpha is dropped; EXIF orientation is ignored, as in COCO's tools.
///
/// # Errors
/// The message of the decoder.
pub fn decode_file(bytes: &[u8]) -> Result<Rgb, String> {
    decode_source(bytes).map(|decoded| decoded.rgb)
}

/// As [`decode_file`], and reports what was lost in the conversion.
///
/// # Errors
/// The message of the decoder.
pub fn decode_source(bytes: &[u8]) -> Result<Decoded, String> {
    if is_jpeg(bytes) {
        let of = |rgb, repaired| Decoded { rgb, max_16_bit: None, alpha: false, repaired };
        return jpeg::decode(bytes).map(|rgb| of(rgb, false)).or_else(|problem| {
            let mended = damaged::repair(bytes).and_then(|file| jpeg::decode(&file).ok());
            mended.map(|rgb| of(rgb, true)).ok_or(problem)
        });
    }
    let (width, height) = file_size(bytes)?;
    check_size(width, height)?;
    let image = reader(bytes)?.decode().map_err(|e| e.to_string())?;
    if matches!(image, ImageRgb32F(_) | ImageRgba32F(_)) {
        return Err("expected samples of 8 or 16 bits, found floating-point samples".into());
    }
    let (max_16_bit, alpha) = (max_16_bit_sample(&image), image.color().has_alpha());
    let rgb = Rgb { width, height, data: image.into_rgb8().into_raw() };
    Ok(Decoded { rgb, max_16_bit, alpha, repaired: false })
}

/// Highest colour sample of a 16-bit image; `None` for other depths.
fn max_16_bit_sample(image: &DynamicImage) -> Option<u16> {
    let (samples, channels, colours) = match image {
        ImageLuma16(i) => (i.as_raw(), 1, 1),
        ImageLumaA16(i) => (i.as_raw(), 2, 1),
        ImageRgb16(i) => (i.as_raw(), 3, 3),
        ImageRgba16(i) => (i.as_raw(), 4, 3),
        _ => return None,
    };
    samples.chunks_exact(channels).flat_map(|pixel| &pixel[..colours]).copied().max()
}

/// A reader for the format recognised by the first bytes of the file.
fn reader(bytes: &[u8]) -> Result<ImageReader<Cursor<&[u8]>>, String> {
    use ImageFormat::{Bmp, Png, Tiff, WebP};
    let format = image::guess_format(bytes).ok();
    let format = format.filter(|f| [Bmp, Png, Tiff, WebP].contains(f));
    let found = if bytes.is_empty() { "an empty file" } else { "other data" };
    let format = format
        .ok_or_else(|| format!("expected a JPEG, PNG, WebP, BMP or TIFF image, found {found}"))?;
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    // Enough for the largest image with four samples of 16 bits per pixel; the default is lower.
    let mut limits = Limits::default();
    limits.max_alloc = Some(8 * MAX_PIXELS as u64);
    reader.limits(limits);
    Ok(reader)
}
