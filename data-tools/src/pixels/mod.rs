//! The two pixel codecs.
//!
//! * `jpeg`: the bytes of the source file, decoded by libjpeg-turbo ([`jpeg`]).
//! * `zstd`: decoded planes, row-differenced and compressed with zstd ([`planes`]). For a JPEG
//!   these are the luma and chroma planes stored in the file, which [`color`] converts to RGB
//!   exactly as libjpeg-turbo does.

mod layout;

pub mod color;
pub mod damaged;
pub mod exif;
pub mod file;
pub mod jpeg;
pub mod planes;

pub use exif::{Exif, ExifBoxes};
pub use file::{Decoded, EXTENSIONS, decode_file, decode_source, file_size, orientation};
pub use jpeg::{encode_jpeg, is_jpeg};
pub(crate) use layout::check_size;
pub use layout::{Codec, Layout, Rgb};

/// Encodes an image with the `zstd` codec: as the planes of a JPEG file if these reproduce `image`
/// exactly, otherwise as RGB. `bytes` is the source file, or empty if its planes cannot be used.
///
/// # Errors
/// An error of zstd.
pub fn encode_zstd(bytes: &[u8], image: &Rgb, level: i32) -> Result<(Layout, Vec<u8>), String> {
    let size = (image.width, image.height);
    if is_jpeg(bytes)
        && let Ok(Some((layout, planes))) = jpeg::planes(bytes)
    {
        let mut back = vec![0; image.data.len()];
        color::to_rgb(layout, &planes, size, &mut back);
        if back == image.data {
            return Ok((layout, planes::encode(layout, planes, size, level)?));
        }
    }
    Ok((Layout::Rgb, planes::encode(Layout::Rgb, color::from_rgb(image), size, level)?))
}

/// Decodes the pixels of a record to a `width` x `height` image.
///
/// # Errors
/// Damaged pixels, or pixels of another size.
pub fn decode(layout: Layout, bytes: &[u8], width: usize, height: usize) -> Result<Rgb, String> {
    check_size(width, height)?;
    if layout == Layout::Jpeg {
        check(layout, bytes, width, height)?;
        return jpeg::decode(bytes);
    }
    let size = (width, height);
    planes::decode(layout, bytes, size, |planes| {
        let mut data = vec![0; 3 * width * height];
        color::to_rgb(layout, planes, size, &mut data);
        Rgb { width, height, data }
    })
}

/// Checks from the header that the pixels of a record have this layout and size.
///
/// # Errors
/// The expected and the found format or size.
pub fn check(layout: Layout, bytes: &[u8], width: usize, height: usize) -> Result<(), String> {
    check_size(width, height)?;
    if layout != Layout::Jpeg {
        return planes::check(layout, bytes, width, height);
    }
    if !is_jpeg(bytes) {
        return Err("expected a JPEG file, found other data".into());
    }
    let found = jpeg::header(bytes)?;
    if (found.width, found.height) != (width, height) {
        let (w, h) = (found.width, found.height);
        return Err(format!("expected {width} x {height} pixels, found {w} x {h}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
