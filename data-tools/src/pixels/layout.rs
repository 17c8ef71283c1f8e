//! Pixel codecs, layouts of stored planes, and decoded images.

/// How the pixels of a pack are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Codec {
    /// Decoded planes, row-differenced and compressed with zstd.
    Zstd,
    /// The bytes of the JPEG file.
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

    /// The codec with this number in the index.
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

/// How the pixels of one record are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Planes red - green, green, blue - green. For sources that are not JPEG, and for JPEG files
    /// whose colour space or subsampling has no layout.
    Rgb,
    /// The bytes of a JPEG file.
    Jpeg,
    /// Y, Cb and Cr planes, all of full size (4:4:4).
    Ycc444,
    /// Chroma planes of half the width (4:2:2).
    Ycc422,
    /// Chroma planes of half the width and height (4:2:0).
    Ycc420,
    /// Only the Y plane.
    Grey,
}

impl Layout {
    /// All layouts, in the order of their numbers, which begin at 1.
    pub(super) const ALL: [Self; 6] =
        [Self::Rgb, Self::Jpeg, Self::Ycc444, Self::Ycc422, Self::Ycc420, Self::Grey];

    /// Number in a record.
    pub fn code(self) -> u32 {
        Self::ALL
            .into_iter()
            .zip(1..)
            .find_map(|(l, n)| (l == self).then_some(n))
            .unwrap_or_default()
    }

    /// The layout with this number in a record.
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|l| l.code() == code)
    }

    /// Sizes (width, height) of the planes of an image of `w` x `h` pixels.
    pub fn plane_sizes(self, (w, h): (usize, usize)) -> Vec<(usize, usize)> {
        match self {
            Self::Grey => vec![(w, h)],
            Self::Rgb | Self::Jpeg | Self::Ycc444 => vec![(w, h); 3],
            Self::Ycc422 => vec![(w, h), (w.div_ceil(2), h), (w.div_ceil(2), h)],
            Self::Ycc420 => {
                let chroma = (w.div_ceil(2), h.div_ceil(2));
                vec![(w, h), chroma, chroma]
            }
        }
    }

    /// Total size in bytes of the planes of an image of `size`.
    pub fn plane_bytes(self, size: (usize, usize)) -> usize {
        self.plane_sizes(size).iter().map(|(w, h)| w * h).sum()
    }
}

/// A decoded image: interleaved RGB, row by row, without padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rgb {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// `height * width * 3` bytes.
    pub data: Vec<u8>,
}

/// Maximum number of pixels of an image.
pub(crate) const MAX_PIXELS: usize = 1 << 28;

/// Checks a size before memory is allocated for it: 1 to 2^28 pixels.
///
/// # Errors
/// The expected and the found size.
pub(crate) fn check_size(width: usize, height: usize) -> Result<(), String> {
    match width.checked_mul(height) {
        Some(1..=MAX_PIXELS) => Ok(()),
        _ => {
            Err(format!("expected an image of 1 to {MAX_PIXELS} pixels, found {width} x {height}"))
        }
    }
}
