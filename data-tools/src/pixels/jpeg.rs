//! JPEG files through libjpeg-turbo: RGB, its own planes, or a check that all of it is there.

use std::cell::RefCell;

use turbojpeg::{
    Colorspace, Compressor, DecompressHeader, Decompressor, PixelFormat, ScalingFactor, Subsamp,
    YuvImage,
};

use super::{Layout, Rgb, planes, sane};

thread_local! {
    static DECODER: RefCell<Option<Decompressor>> = const { RefCell::new(None) };
}

/// Runs `f` with this thread's decoder.
fn with<T>(f: impl FnOnce(&mut Decompressor) -> turbojpeg::Result<T>) -> Result<T, String> {
    DECODER.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = Some(Decompressor::new().map_err(|e| e.to_string())?);
        }
        let Some(decoder) = slot.as_mut() else { return Err("no JPEG decoder".into()) };
        let done = f(decoder).map_err(|e| e.to_string());
        if decoder.scaling_factor() != ScalingFactor::ONE {
            decoder.set_scaling_factor(ScalingFactor::ONE).map_err(|e| e.to_string())?;
        }
        done
    })
}

/// Whether the bytes start like a JPEG file.
pub fn is_jpeg(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0xff, 0xd8, 0xff])
}

/// Size, colours and subsampling.
///
/// # Errors
/// A damaged header.
pub fn header(bytes: &[u8]) -> Result<DecompressHeader, String> {
    with(|d| d.read_header(bytes))
}

fn is_cmyk(h: &DecompressHeader) -> bool {
    matches!(h.colorspace, Colorspace::CMYK | Colorspace::YCCK)
}

/// Decodes to RGB; a truncated or damaged file is an error, never a grey picture.
///
/// # Errors
/// What libjpeg-turbo said.
pub fn decode(bytes: &[u8]) -> Result<Rgb, String> {
    decode_scaled(bytes, ScalingFactor::ONE)
}

/// Decodes to RGB at `eighths` / 8 of the size (rounded up), which skips most of the work behind
/// the entropy decoding.
///
/// # Errors
/// What libjpeg-turbo said.
pub fn decode_eighths(bytes: &[u8], eighths: usize) -> Result<Rgb, String> {
    decode_scaled(bytes, ScalingFactor::new(eighths, 8))
}

fn decode_scaled(bytes: &[u8], factor: ScalingFactor) -> Result<Rgb, String> {
    let header = header(bytes)?;
    sane(header.width, header.height)?;
    let (width, height) = (factor.scale(header.width), factor.scale(header.height));
    let (format, depth) =
        if is_cmyk(&header) { (PixelFormat::CMYK, 4) } else { (PixelFormat::RGB, 3) };
    let mut data = vec![0; width * height * depth];
    with(|d| {
        d.set_scaling_factor(factor)?;
        d.decompress(
            bytes,
            turbojpeg::Image { pixels: &mut data[..], width, pitch: width * depth, height, format },
        )
    })?;
    if depth == 4 {
        // Adobe writes CMYK inverted: 255 means no ink.
        data = data
            .chunks_exact(4)
            .flat_map(|p| [0, 1, 2].map(|c| ((p[c] as u32 * p[3] as u32 + 127) / 255) as u8))
            .collect();
    }
    Ok(Rgb { width, height, data })
}

/// Reads all of the entropy-coded data at an eighth of the size: finds what `decode` would find, in
/// less time.
///
/// # Errors
/// What libjpeg-turbo said.
pub fn check(bytes: &[u8]) -> Result<(), String> {
    decode_eighths(bytes, 1).map(|_| ())
}

/// The file's own planes behind one another, without padding; `None` for colours or a subsampling
/// that have no layout.
///
/// # Errors
/// What libjpeg-turbo said.
pub fn planes(bytes: &[u8]) -> Result<Option<(Layout, Vec<u8>)>, String> {
    let h = header(bytes)?;
    let layout = match (h.colorspace, h.subsamp) {
        (Colorspace::YCbCr, Subsamp::None) => Layout::Ycc444,
        (Colorspace::YCbCr, Subsamp::Sub2x1) => Layout::Ycc422,
        (Colorspace::YCbCr, Subsamp::Sub2x2) => Layout::Ycc420,
        (Colorspace::Gray, Subsamp::Gray) => Layout::Grey,
        _ => return Ok(None),
    };
    let (width, height) = (h.width, h.height);
    sane(width, height)?;
    let length =
        turbojpeg::yuv_pixels_len(width, 1, height, h.subsamp).map_err(|e| e.to_string())?;
    let mut padded = vec![0; length];
    with(|d| {
        d.decompress_to_yuv(
            bytes,
            YuvImage { pixels: &mut padded[..], width, align: 1, height, subsamp: h.subsamp },
        )
    })?;
    // With subsampled chroma libjpeg-turbo pads the luma plane to whole chroma samples.
    let sizes = planes::sizes(layout, (width, height));
    let chroma: usize = sizes[1..].iter().map(|(w, h)| w * h).sum();
    let luma_width = match layout {
        Layout::Ycc422 | Layout::Ycc420 => width.next_multiple_of(2),
        _ => width,
    };
    let mut pixels = Vec::with_capacity(width * height + chroma);
    padded.chunks_exact(luma_width).take(height).for_each(|row| pixels.extend(&row[..width]));
    pixels.extend(&padded[length - chroma..]);
    Ok(Some((layout, pixels)))
}

/// Encodes (4:4:4), for pictures that the project draws itself.
///
/// # Errors
/// What libjpeg-turbo said.
pub fn encode_jpeg(image: &Rgb, quality: i32) -> Result<Vec<u8>, String> {
    encode_with(image, quality, Subsamp::None)
}

/// Encodes with a subsampling.
///
/// # Errors
/// What libjpeg-turbo said.
pub fn encode_with(image: &Rgb, quality: i32, subsamp: Subsamp) -> Result<Vec<u8>, String> {
    let mut compressor = Compressor::new().map_err(|e| e.to_string())?;
    compressor.set_quality(quality).map_err(|e| e.to_string())?;
    compressor.set_subsamp(subsamp).map_err(|e| e.to_string())?;
    let pixels = turbojpeg::Image {
        pixels: &image.data[..],
        width: image.width,
        pitch: image.width * 3,
        height: image.height,
        format: PixelFormat::RGB,
    };
    compressor.compress_to_vec(pixels).map_err(|e| e.to_string())
}
