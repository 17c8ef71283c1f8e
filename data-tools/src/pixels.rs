//! The two pixel codecs.
//!
//! * `jpeg`: the source file's own bytes, decoded by libjpeg-turbo.
//! * `zstd`: RGB, decorrelated without loss (red and blue minus green, then each row minus the row above,
//!   plane by plane) and compressed with zstd. About 2.6 times the bytes of a COCO JPEG, decoded faster.

use std::cell::RefCell;

use turbojpeg::{Colorspace, Compressor, Decompressor, PixelFormat, Subsamp};

/// How a record's pixels are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Codec {
    /// Decoded, decorrelated, zstd-compressed RGB.
    Zstd,
    /// The JPEG file's own bytes.
    Jpeg,
}

impl Codec {
    /// Number on disk.
    pub fn code(self) -> u32 {
        match self {
            Self::Zstd => 1,
            Self::Jpeg => 2,
        }
    }

    /// From the number on disk.
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

/// Whether the bytes start like a JPEG file.
pub fn is_jpeg(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0xff, 0xd8, 0xff])
}

/// Decodes a JPEG or PNG file's bytes (grey and CMYK become RGB; EXIF orientation is ignored, as COCO's tools do).
///
/// # Errors
/// What the decoder said, in its own words.
pub fn decode_file(bytes: &[u8]) -> Result<Rgb, String> {
    if is_jpeg(bytes) {
        return decode_jpeg(bytes);
    }
    if !bytes.starts_with(b"\x89PNG") {
        return Err("expected a JPEG or PNG image, found something else".into());
    }
    let image = image::load_from_memory_with_format(bytes, image::ImageFormat::Png).map_err(|e| e.to_string())?.to_rgb8();
    Ok(Rgb { width: image.width() as usize, height: image.height() as usize, data: image.into_raw() })
}

thread_local! {
    static DECODER: RefCell<Option<Decompressor>> = const { RefCell::new(None) };
    static UNZSTD: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Decodes a JPEG; a truncated or damaged one is an error, never a grey picture.
pub fn decode_jpeg(bytes: &[u8]) -> Result<Rgb, String> {
    DECODER.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = Some(Decompressor::new().map_err(|e| e.to_string())?);
        }
        let Some(decoder) = slot.as_mut() else { return Err("no JPEG decoder".into()) };
        let header = decoder.read_header(bytes).map_err(|e| e.to_string())?;
        let (width, height) = (header.width, header.height);
        let cmyk = matches!(header.colorspace, Colorspace::CMYK | Colorspace::YCCK);
        let (format, depth) = if cmyk { (PixelFormat::CMYK, 4) } else { (PixelFormat::RGB, 3) };
        let mut data = vec![0; width * height * depth];
        let out = turbojpeg::Image { pixels: &mut data[..], width, pitch: width * depth, height, format };
        decoder.decompress(bytes, out).map_err(|e| e.to_string())?;
        if cmyk {
            // Adobe writes CMYK inverted: 255 means no ink.
            data = data.chunks_exact(4).flat_map(|p| [0, 1, 2].map(|c| ((p[c] as u32 * p[3] as u32 + 127) / 255) as u8)).collect();
        }
        Ok(Rgb { width, height, data })
    })
}

/// Encodes a JPEG (4:4:4), for pictures that the project draws itself.
pub fn encode_jpeg(image: &Rgb, quality: i32) -> Result<Vec<u8>, String> {
    let mut compressor = Compressor::new().map_err(|e| e.to_string())?;
    compressor.set_quality(quality).map_err(|e| e.to_string())?;
    compressor.set_subsamp(Subsamp::None).map_err(|e| e.to_string())?;
    let pixels = turbojpeg::Image {
        pixels: &image.data[..],
        width: image.width,
        pitch: image.width * 3,
        height: image.height,
        format: PixelFormat::RGB,
    };
    compressor.compress_to_vec(pixels).map_err(|e| e.to_string())
}

/// Encodes with the `zstd` codec.
pub fn encode_zstd(image: &Rgb, level: i32) -> std::io::Result<Vec<u8>> {
    let (w, n) = (image.width, image.width * image.height);
    let mut planes = vec![0; 3 * n];
    {
        let (red, rest) = planes.split_at_mut(n);
        let (green, blue) = rest.split_at_mut(n);
        for (i, p) in image.data.chunks_exact(3).enumerate() {
            red[i] = p[0].wrapping_sub(p[1]);
            green[i] = p[1];
            blue[i] = p[2].wrapping_sub(p[1]);
        }
    }
    for plane in planes.chunks_exact_mut(n.max(1)) {
        for i in (w..n).rev() {
            plane[i] = plane[i].wrapping_sub(plane[i - w]);
        }
    }
    zstd::bulk::compress(&planes, level)
}

/// Decodes the `zstd` codec.
///
/// # Errors
/// A damaged frame, or one of another size than `width` x `height`.
pub fn decode_zstd(bytes: &[u8], width: usize, height: usize) -> Result<Rgb, String> {
    let n = width * height;
    let mut planes = vec![0; 3 * n];
    let found = UNZSTD.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = Some(zstd::bulk::Decompressor::new().map_err(|e| e.to_string())?);
        }
        let Some(d) = slot.as_mut() else { return Err("no zstd decoder".to_owned()) };
        d.decompress_to_buffer(bytes, &mut planes[..]).map_err(|e| e.to_string())
    })?;
    if found != 3 * n {
        return Err(format!("expected {} bytes of pixels, found {found}", 3 * n));
    }
    for plane in planes.chunks_exact_mut(n.max(1)) {
        for row in 1..height {
            let (above, here) = plane.split_at_mut(row * width);
            let above = &above[(row - 1) * width..];
            for (p, a) in here[..width].iter_mut().zip(above) {
                *p = p.wrapping_add(*a);
            }
        }
    }
    let (red, rest) = planes.split_at(n);
    let (green, blue) = rest.split_at(n);
    let mut data = vec![0; 3 * n];
    for (((out, r), g), b) in data.chunks_exact_mut(3).zip(red).zip(green).zip(blue) {
        out[0] = r.wrapping_add(*g);
        out[1] = *g;
        out[2] = b.wrapping_add(*g);
    }
    Ok(Rgb { width, height, data })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(width: usize, height: usize) -> Rgb {
        let data = (0..width * height * 3).map(|i| (i * i * 31 + i / 7) as u8).collect();
        Rgb { width, height, data }
    }

    #[test]
    fn zstd_is_lossless_for_every_shape() {
        for (w, h) in [(1, 1), (1, 9), (9, 1), (64, 48), (33, 17)] {
            let image = noise(w, h);
            assert_eq!(decode_zstd(&encode_zstd(&image, 1).unwrap(), w, h).unwrap(), image, "{w} x {h}");
        }
    }

    #[test]
    fn zstd_of_another_size_is_refused() {
        let bytes = encode_zstd(&noise(8, 8), 1).unwrap();
        assert!(decode_zstd(&bytes, 8, 9).unwrap_err().contains("expected"));
        assert!(decode_zstd(&bytes, 8, 7).is_err());
    }

    #[test]
    fn truncated_jpeg_is_an_error() {
        let bytes = encode_jpeg(&noise(64, 64), 90).unwrap();
        assert!(decode_file(&bytes).is_ok());
        for cut in [bytes.len() / 2, bytes.len() - 40] {
            assert!(decode_file(&bytes[..cut]).is_err(), "cut at {cut} of {}", bytes.len());
        }
        assert!(decode_file(b"GIF89a").is_err());
    }
}
