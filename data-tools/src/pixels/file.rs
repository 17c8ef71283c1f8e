//! Source images: JPEG and PNG files.

use std::io::Cursor;

use image::DynamicImage::{ImageLuma16, ImageLumaA16, ImageRgb16, ImageRgba16};
use image::{DynamicImage, ImageFormat, ImageReader};

use super::jpeg::{self, is_jpeg};
use super::layout::{Rgb, check_size};

/// Size (width, height) of a JPEG or PNG file, read from its header.
///
/// # Errors
/// Another format, or a damaged header.
pub fn file_size(bytes: &[u8]) -> Result<(usize, usize), String> {
    if is_jpeg(bytes) {
        return jpeg::header(bytes).map(|h| (h.width, h.height));
    }
    let reader = ImageReader::with_format(Cursor::new(png(bytes)?), ImageFormat::Png);
    reader.into_dimensions().map(|(w, h)| (w as usize, h as usize)).map_err(|e| e.to_string())
}

/// EXIF orientation of a JPEG or PNG file, 1 to 8: 1 is as stored, 5 to 8 exchange width and height
/// on display. COCO's tools ignore it, and so does [`decode_file`]. `None` if the file has none.
pub fn orientation(bytes: &[u8]) -> Option<u32> {
    let exif = exif::Reader::new().read_from_container(&mut Cursor::new(bytes)).ok()?;
    exif.get_field(exif::Tag::Orientation, exif::In::PRIMARY)?.value.get_uint(0)
}

/// Decodes a JPEG or PNG file. Grey and CMYK images are converted to RGB; EXIF orientation is
/// ignored, as in COCO's tools.
///
/// # Errors
/// The message of the decoder.
pub fn decode_file(bytes: &[u8]) -> Result<Rgb, String> {
    decode_with_depth(bytes).map(|(rgb, _)| rgb)
}

/// As [`decode_file`], with the highest sample of a 16-bit PNG before it is scaled to 8 bits (alpha
/// excluded); `None` for other files.
///
/// # Errors
/// The message of the decoder.
pub fn decode_with_depth(bytes: &[u8]) -> Result<(Rgb, Option<u16>), String> {
    if is_jpeg(bytes) {
        return jpeg::decode(bytes).map(|rgb| (rgb, None));
    }
    let (width, height) = file_size(bytes)?;
    check_size(width, height)?;
    let image = image::load_from_memory_with_format(png(bytes)?, ImageFormat::Png)
        .map_err(|e| e.to_string())?;
    let highest = max_16_bit_sample(&image);
    Ok((Rgb { width, height, data: image.into_rgb8().into_raw() }, highest))
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

/// The bytes, if they begin with the signature of a PNG file.
fn png(bytes: &[u8]) -> Result<&[u8], String> {
    let is_png = bytes.starts_with(b"\x89PNG");
    is_png.then_some(bytes).ok_or_else(|| "expected a JPEG or PNG image, found other data".into())
}
