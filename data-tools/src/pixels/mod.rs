//! The two pixel codecs.
//!
//! * `jpeg`: the source file's own bytes, decoded by libjpeg-turbo ([`jpeg`]).
//! * `zstd`: decoded planes, each row minus the row above, compressed with zstd ([`planes`]). Of a JPEG they are its own
//!   luma and chroma planes at its own subsampling, converted to the very RGB that libjpeg-turbo gives ([`color`]).

pub mod color;
pub mod jpeg;
pub mod planes;

pub use jpeg::{encode_jpeg, is_jpeg};

/// How a pack's pixels are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Codec {
    /// Decoded, decorrelated, zstd-compressed planes.
    Zstd,
    /// The JPEG file's own bytes.
    Jpeg,
}

impl Codec {
    /// Number in the index.
    pub fn code(self) -> u32 {
        match self {
            Self::Zstd => 1,
            Self::Jpeg => 2,
        }
    }

    /// From the number in the index.
    pub fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::Zstd),
            2 => Some(Self::Jpeg),
            _ => None,
        }
    }

    /// Name on the command line and in `info`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Jpeg => "jpeg",
        }
    }
}

/// What one record's pixels are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Planes red - green, green, blue - green (sources that are no JPEG, or of unusual
    /// subsampling).
    Rgb,
    /// A JPEG file's bytes.
    Jpeg,
    /// Luma and two chroma planes of the full size (4:4:4).
    Ycc444,
    /// Chroma of half the width (4:2:2).
    Ycc422,
    /// Chroma of half the width and height (4:2:0).
    Ycc420,
    /// Luma alone.
    Grey,
}

impl Layout {
    const ALL: [Self; 6] =
        [Self::Rgb, Self::Jpeg, Self::Ycc444, Self::Ycc422, Self::Ycc420, Self::Grey];

    /// Number in a record.
    pub fn code(self) -> u32 {
        Self::ALL
            .into_iter()
            .zip(1..)
            .find_map(|(l, n)| (l == self).then_some(n))
            .unwrap_or_default()
    }

    /// From the number in a record.
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|l| l.code() == code)
    }
}

/// An image in memory: RGB, row by row, no padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rgb {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// `height * width * 3` bytes.
    pub data: Vec<u8>,
}

/// Larger images are refused before memory is taken for them.
const MOST_PIXELS: usize = 1 << 28;

/// Checks a size before anything of it is allocated.
pub(crate) fn sane(width: usize, height: usize) -> Result<usize, String> {
    match width.checked_mul(height) {
        Some(n) if n > 0 && n <= MOST_PIXELS => Ok(n),
        _ => Err(format!("an image of {width} x {height} pixels is beyond what can be handled")),
    }
}

/// Size (width, height) of a JPEG or PNG file, from its header alone.
///
/// # Errors
/// Neither, or a damaged header.
pub fn file_size(bytes: &[u8]) -> Result<(usize, usize), String> {
    if is_jpeg(bytes) {
        return jpeg::header(bytes).map(|h| (h.width, h.height));
    }
    let reader =
        image::ImageReader::with_format(std::io::Cursor::new(png(bytes)?), image::ImageFormat::Png);
    reader.into_dimensions().map(|(w, h)| (w as usize, h as usize)).map_err(|e| e.to_string())
}

/// EXIF orientation of a JPEG or PNG file, 1 to 8: 1 is as stored, 5 to 8 exchange width and height
/// when shown. COCO's tools ignore it, and so does [`decode_file`]. `None` where the file says
/// nothing.
pub fn orientation(bytes: &[u8]) -> Option<u32> {
    let exif = exif::Reader::new().read_from_container(&mut std::io::Cursor::new(bytes)).ok()?;
    exif.get_field(exif::Tag::Orientation, exif::In::PRIMARY)?.value.get_uint(0)
}

/// Decodes a JPEG or PNG file's bytes (grey and CMYK become RGB; EXIF orientation is ignored, as
/// COCO's tools do).
///
/// # Errors
/// What the decoder said, in its own words.
pub fn decode_file(bytes: &[u8]) -> Result<Rgb, String> {
    decode_with_depth(bytes).map(|(rgb, _)| rgb)
}

/// As [`decode_file`]; of a PNG with 16 bits a sample, which is scaled to 8, also the highest
/// sample (without alpha).
///
/// # Errors
/// What the decoder said, in its own words.
pub fn decode_with_depth(bytes: &[u8]) -> Result<(Rgb, Option<u16>), String> {
    if is_jpeg(bytes) {
        return jpeg::decode(bytes).map(|rgb| (rgb, None));
    }
    let (width, height) = file_size(bytes)?;
    sane(width, height)?;
    let image = image::load_from_memory_with_format(png(bytes)?, image::ImageFormat::Png)
        .map_err(|e| e.to_string())?;
    let highest = highest_of_16_bits(&image);
    Ok((Rgb { width, height, data: image.into_rgb8().into_raw() }, highest))
}

fn highest_of_16_bits(image: &image::DynamicImage) -> Option<u16> {
    use image::DynamicImage::{ImageLuma16, ImageLumaA16, ImageRgb16, ImageRgba16};
    let (samples, channels, colours) = match image {
        ImageLuma16(i) => (i.as_raw(), 1, 1),
        ImageLumaA16(i) => (i.as_raw(), 2, 1),
        ImageRgb16(i) => (i.as_raw(), 3, 3),
        ImageRgba16(i) => (i.as_raw(), 4, 3),
        _ => return None,
    };
    samples.chunks_exact(channels).flat_map(|pixel| &pixel[..colours]).copied().max()
}

fn png(bytes: &[u8]) -> Result<&[u8], String> {
    let png = bytes.starts_with(b"\x89PNG");
    png.then_some(bytes).ok_or_else(|| "expected a JPEG or PNG image, found something else".into())
}

/// Encodes a file's image with the `zstd` codec: a JPEG's own planes where they give its RGB back
/// exactly, else RGB.
///
/// # Errors
/// What the decoder said.
pub fn encode_zstd(bytes: &[u8], image: &Rgb, level: i32) -> Result<(Layout, Vec<u8>), String> {
    if is_jpeg(bytes)
        && let Ok(Some((layout, mut planes))) = jpeg::planes(bytes)
    {
        let size = (image.width, image.height);
        let mut back = vec![0; image.data.len()];
        color::to_rgb(layout, &planes, size, &mut back);
        if back == image.data {
            planes::predict(layout, &mut planes, size);
            return Ok((layout, planes::compress(&planes, level)?));
        }
    }
    Ok((Layout::Rgb, planes::encode_rgb(image, level)?))
}

/// Decodes a record's pixels of `width` x `height`.
///
/// # Errors
/// Damaged pixels, or pixels of another size.
pub fn decode(layout: Layout, bytes: &[u8], width: usize, height: usize) -> Result<Rgb, String> {
    sane(width, height)?;
    if layout != Layout::Jpeg {
        return planes::decode(layout, bytes, width, height);
    }
    check(layout, bytes, width, height)?;
    jpeg::decode(bytes)
}

/// Checks by their header that a record's pixels are of `layout` and `width` x `height`.
///
/// # Errors
/// What was expected and what was found.
pub fn check(layout: Layout, bytes: &[u8], width: usize, height: usize) -> Result<(), String> {
    sane(width, height)?;
    if layout != Layout::Jpeg {
        return planes::check(layout, bytes, width, height);
    }
    if !is_jpeg(bytes) {
        return Err("expected a JPEG file, found something else".into());
    }
    let found = jpeg::header(bytes)?;
    if (found.width, found.height) != (width, height) {
        let (w, h) = (found.width, found.height);
        return Err(format!("expected {width} x {height} pixels, found {w} x {h}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use turbojpeg::Subsamp;

    fn noise(width: usize, height: usize) -> Rgb {
        let data = (0..width * height * 3).map(|i| (i * i * 31 + i / 7) as u8).collect();
        Rgb { width, height, data }
    }

    const SHAPES: [(usize, usize); 9] =
        [(1, 1), (1, 9), (9, 1), (2, 2), (3, 5), (4, 4), (64, 48), (33, 17), (34, 50)];

    #[test]
    fn rgb_planes_are_lossless_for_every_shape() {
        for (w, h) in SHAPES {
            let image = noise(w, h);
            let (layout, bytes) = encode_zstd(b"not a JPEG", &image, 1).unwrap();
            assert_eq!(layout, Layout::Rgb);
            assert_eq!(decode(layout, &bytes, w, h).unwrap(), image, "{w} x {h}");
        }
    }

    /// A JPEG's own planes give libjpeg-turbo's RGB to the last bit, also with subsampled chroma
    /// and odd sizes.
    #[test]
    fn planes_of_a_jpeg_are_its_rgb() {
        let cases = [
            (Subsamp::None, Layout::Ycc444),
            (Subsamp::Sub2x1, Layout::Ycc422),
            (Subsamp::Sub2x2, Layout::Ycc420),
            (Subsamp::Gray, Layout::Grey),
        ];
        for (subsamp, expected) in cases {
            for (w, h) in SHAPES {
                for quality in [30, 96] {
                    let file = jpeg::encode_with(&noise(w, h), quality, subsamp).unwrap();
                    let image = decode_file(&file).unwrap();
                    let (layout, bytes) = encode_zstd(&file, &image, 1).unwrap();
                    assert_eq!(layout, expected, "{w} x {h}, {subsamp:?}");
                    assert!(
                        decode(layout, &bytes, w, h).unwrap() == image,
                        "{w} x {h}, {subsamp:?}"
                    );
                }
            }
        }
        // A subsampling without a layout of its own falls back to RGB, as exact.
        let file = jpeg::encode_with(&noise(33, 17), 90, Subsamp::Sub4x1).unwrap();
        let image = decode_file(&file).unwrap();
        let (layout, bytes) = encode_zstd(&file, &image, 1).unwrap();
        assert_eq!((layout, decode(layout, &bytes, 33, 17).unwrap() == image), (Layout::Rgb, true));
    }

    #[test]
    fn pixels_of_another_size_are_refused() {
        let (layout, bytes) = encode_zstd(b"", &noise(8, 8), 1).unwrap();
        for (w, h) in [(8, 9), (8, 7), (1 << 20, 1 << 20), (0, 8), (usize::MAX, 2)] {
            assert!(decode(layout, &bytes, w, h).is_err(), "{w} x {h}");
        }
        let file = encode_jpeg(&noise(8, 8), 90).unwrap();
        assert!(decode(Layout::Jpeg, &file, 8, 9).unwrap_err().contains("found 8 x 8"));
    }

    #[test]
    fn a_scaled_decode_is_the_picture_in_small() {
        let data =
            (0..64 * 48).flat_map(|i| [(i % 64 * 4) as u8, (i / 64 * 5) as u8, 128]).collect();
        let image = Rgb { width: 64, height: 48, data };
        let bytes = encode_jpeg(&image, 96).unwrap();
        for eighths in 1..8 {
            let small = jpeg::decode_eighths(&bytes, eighths).unwrap();
            assert_eq!((small.width, small.height), (8 * eighths, 6 * eighths));
            for (x, y) in
                [(0, 0), (small.width / 2, small.height / 2), (small.width - 1, small.height - 1)]
            {
                let at = |i: usize, n: usize| {
                    (i as f64 + 0.5) * 8.0 / eighths as f64 * n as f64 - n as f64 / 2.0
                };
                let p = &small.data[(y * small.width + x) * 3..][..3];
                let off =
                    (f64::from(p[0]) - at(x, 4)).abs().max((f64::from(p[1]) - at(y, 5)).abs());
                assert!(off < 8.0, "{eighths} eighths at {x}, {y}: {p:?}, off by {off}");
            }
        }
        assert_eq!(decode_file(&bytes).unwrap().width, 64, "the next decode is whole again");
    }

    #[test]
    fn truncated_jpeg_is_an_error() {
        let bytes = encode_jpeg(&noise(64, 64), 90).unwrap();
        assert!(decode_file(&bytes).is_ok() && jpeg::check(&bytes).is_ok());
        for cut in [bytes.len() / 2, bytes.len() - 40] {
            assert!(decode_file(&bytes[..cut]).is_err(), "cut at {cut} of {}", bytes.len());
            assert!(jpeg::check(&bytes[..cut]).is_err(), "check, cut at {cut} of {}", bytes.len());
        }
        assert!(decode_file(b"GIF89a").is_err());
    }

    #[test]
    fn codes_come_back() {
        for layout in Layout::ALL {
            assert_eq!(Layout::from_code(layout.code()), Some(layout));
        }
        assert_eq!(
            (Layout::Jpeg.code(), Layout::from_code(0), Layout::from_code(7)),
            (2, None, None)
        );
    }
}
