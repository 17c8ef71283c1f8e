//! JPEG files through libjpeg-turbo: decoding to RGB or to the stored planes, checking, encoding.

use turbojpeg::{
    Colorspace, Compressor, DecompressHeader, Decompressor, PixelFormat, ScalingFactor, Subsamp,
    YuvImage,
};

use super::layout::{Layout, Rgb, check_size};

/// A decoder for one file: after a file, libjpeg-turbo keeps its tables, and would use them for a
/// file that lacks its own.
fn decoder() -> Result<Decompressor, String> {
    Decompressor::new().map_err(|e| e.to_string())
}

/// Whether the bytes begin with the signature of a JPEG file.
pub fn is_jpeg(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0xff, 0xd8, 0xff])
}

/// Reads size, colour space and subsampling.
///
/// # Errors
/// A damaged or incomplete header.
pub fn header(bytes: &[u8]) -> Result<DecompressHeader, String> {
    turbojpeg::read_header(bytes).map_err(|e| match e {
        turbojpeg::Error::IntegerOverflow(_) => "the header has no image size".to_owned(),
        e => e.to_string(),
    })
}

fn is_cmyk(h: &DecompressHeader) -> bool {
    matches!(h.colorspace, Colorspace::CMYK | Colorspace::YCCK)
}

/// Decodes to RGB. A truncated or damaged file is an error, not a partly grey image.
///
/// # Errors
/// The message of libjpeg-turbo.
pub fn decode(bytes: &[u8]) -> Result<Rgb, String> {
    decode_scaled(bytes, ScalingFactor::ONE)
}

/// Decodes to RGB at `eighths` / 8 of the size (rounded up), which saves most of the work after
/// entropy decoding.
///
/// # Errors
/// The message of libjpeg-turbo.
pub fn decode_eighths(bytes: &[u8], eighths: usize) -> Result<Rgb, String> {
    decode_scaled(bytes, ScalingFactor::new(eighths, 8))
}

fn decode_scaled(bytes: &[u8], factor: ScalingFactor) -> Result<Rgb, String> {
    let header = header(bytes)?;
    check_size(header.width, header.height)?;
    let (width, height) = (factor.scale(header.width), factor.scale(header.height));
    let (format, depth) =
        if is_cmyk(&header) { (PixelFormat::CMYK, 4) } else { (PixelFormat::RGB, 3) };
    let mut data = vec![0; width * height * depth];
    let mut decoder = decoder()?;
    decoder.set_scaling_factor(factor).map_err(|e| e.to_string())?;
    let image =
        turbojpeg::Image { pixels: &mut data[..], width, pitch: width * depth, height, format };
    decoder.decompress(bytes, image).map_err(|e| e.to_string())?;
    let data = if depth == 4 { cmyk_to_rgb(&data) } else { data };
    Ok(Rgb { width, height, data })
}

/// Converts inverted CMYK, which Adobe's programs write: 255 means no ink.
pub(super) fn cmyk_to_rgb(cmyk: &[u8]) -> Vec<u8> {
    cmyk.chunks_exact(4)
        .flat_map(|p| [0, 1, 2].map(|c| ((p[c] as u32 * p[3] as u32 + 127) / 255) as u8))
        .collect()
}

/// Checks a file by decoding it at 1/8 of its size. All entropy-coded data is read, so this finds
/// the same damage as [`decode`] in less time.
///
/// # Errors
/// The message of libjpeg-turbo.
pub fn check(bytes: &[u8]) -> Result<(), String> {
    decode_eighths(bytes, 1).map(|_| ())
}

/// Decodes to the planes stored in the file, concatenated without padding; `None` for a colour
/// space or subsampling that has no layout.
///
/// # Errors
/// The message of libjpeg-turbo.
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
    check_size(width, height)?;
    let length =
        turbojpeg::yuv_pixels_len(width, 1, height, h.subsamp).map_err(|e| e.to_string())?;
    let mut padded = vec![0; length];
    let image = YuvImage { pixels: &mut padded[..], width, align: 1, height, subsamp: h.subsamp };
    decoder()?.decompress_to_yuv(bytes, image).map_err(|e| e.to_string())?;
    // With subsampled chroma libjpeg-turbo pads the luma plane to an even width.
    let chroma = layout.plane_bytes((width, height)) - width * height;
    let luma_width = match layout {
        Layout::Ycc422 | Layout::Ycc420 => width.next_multiple_of(2),
        _ => width,
    };
    let mut pixels = Vec::with_capacity(width * height + chroma);
    padded.chunks_exact(luma_width).take(height).for_each(|row| pixels.extend(&row[..width]));
    pixels.extend(&padded[length - chroma..]);
    Ok(Some((layout, pixels)))
}

/// Encodes with 4:4:4 subsampling, for synthetic images. `quality`: 1 to 100.
///
/// # Errors
/// The message of libjpeg-turbo.
pub fn encode_jpeg(image: &Rgb, quality: i32) -> Result<Vec<u8>, String> {
    encode_with(image, quality, Subsamp::None)
}

/// Encodes with the given subsampling. `quality`: 1 to 100.
///
/// # Errors
/// The message of libjpeg-turbo.
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
