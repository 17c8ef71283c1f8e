//! JPEG files that libjpeg-turbo decodes with a warning. OpenCV and Pillow accept most of them.
//!
//! [`repair`] mends what leaves all pixels intact; [`decode`] takes what it can get from the rest.

use std::ffi::CStr;

use turbojpeg::raw;

use super::jpeg::{cmyk_to_rgb, is_jpeg};
use super::layout::{Rgb, check_size};

/// Start of a frame with Huffman codes: baseline, extended and progressive.
const SOF0: u8 = 0xc0;
const SOF1: u8 = 0xc1;
const SOF2: u8 = 0xc2;
/// Definition of Huffman tables.
const DHT: u8 = 0xc4;
/// Start of scan: entropy-coded data follows this segment.
const SOS: u8 = 0xda;
/// Application data, among others colour profiles.
const APP2: u8 = 0xe2;
/// End of image.
const EOI: [u8; 2] = [0xff, 0xd9];

/// Beginnings of libjpeg-turbo's warnings about files (`JWRN_*` in its `jerror.h`); after any other
/// message it has given up. Its error code cannot tell an error after a warning from a warning.
const WARNINGS: [&str; 6] = [
    "Corrupt JPEG data:",
    "Premature end of JPEG file",
    "Inconsistent progression sequence",
    "Invalid SOS parameters for sequential JPEG",
    "Unknown Adobe color transform code",
    "Warning: unknown JFIF revision number",
];

/// Beginning of an APP2 segment with a part of a colour profile.
const ICC: &[u8] = b"ICC_PROFILE\0";

/// The file without bytes between the segments of its header that belong to none, without colour
/// profile (which is not used), and with an end-of-image marker; `None` if nothing of this changes
/// it. If the result is decoded without a warning, the pixels of the file are complete.
///
/// A damaged marker also looks like bytes that belong to no segment. Without a quantisation table
/// libjpeg-turbo rejects the file, but instead of Huffman tables it would use those of the
/// standard: all that the first scan uses must be defined.
///
/// The marker is added only to files with a single scan: the end of another one may lack whole
/// scans, which would go unnoticed.
pub fn repair(file: &[u8]) -> Option<Vec<u8>> {
    if !is_jpeg(file) {
        return None;
    }
    let mut mended = file[..2].to_vec();
    let mut at = 2;
    // Components of a sequential frame.
    let mut sequential = None;
    let (mut huffman, mut tables) = (false, vec![]);
    let single_scan = loop {
        // As libjpeg: a marker is 0xff, repeated at will, and a byte other than 0 and 0xff.
        at += file.get(at..)?.windows(2).position(|b| b[0] == 0xff && !matches!(b[1], 0 | 0xff))?;
        let marker = file[at + 1];
        if marker == EOI[1] {
            return None;
        }
        let length = file.get(at + 2..at + 4)?;
        let end = at + 2 + usize::from(u16::from_be_bytes([length[0], length[1]]));
        let segment = file.get(at..end)?;
        huffman |= matches!(marker, SOF0 | SOF1 | SOF2);
        if matches!(marker, SOF0 | SOF1) {
            sequential = Some(*segment.get(9)?);
        }
        if marker == DHT {
            tables.extend(defined_tables(segment.get(4..)?)?);
        }
        at = end;
        if marker != APP2 || !segment.get(4..)?.starts_with(ICC) {
            mended.extend(segment);
        }
        if marker == SOS {
            if huffman && !used_tables(segment)?.iter().all(|table| tables.contains(table)) {
                return None;
            }
            break sequential == Some(*segment.get(4)?);
        }
    };
    mended.extend(&file[at..]);
    if !mended.ends_with(&EOI) {
        if !single_scan {
            return None;
        }
        mended.extend(EOI);
    }
    (mended != file).then_some(mended)
}

/// Class (0x00 for DC, 0x10 for AC) and number of each Huffman table in a DHT segment's contents.
fn defined_tables(mut contents: &[u8]) -> Option<Vec<u8>> {
    let mut tables = vec![];
    while let Some((table, rest)) = contents.split_first() {
        let codes: usize = rest.get(..16)?.iter().map(|n| usize::from(*n)).sum();
        contents = rest.get(16 + codes..)?;
        tables.push(*table);
    }
    Some(tables)
}

/// The Huffman tables that a scan uses, given its SOS segment; see [`defined_tables`].
fn used_tables(segment: &[u8]) -> Option<Vec<u8>> {
    let components = usize::from(*segment.get(4)?);
    let selectors = segment.get(5..5 + 2 * components)?.chunks_exact(2).map(|c| c[1]);
    // The range of coefficients: 0 is DC.
    let [first, last] = *segment.get(5 + 2 * components..)?.first_chunk::<2>()?;
    let of = |s: u8| [(first == 0).then_some(s >> 4), (last > 0).then_some(0x10 | s & 0xf)];
    Some(selectors.flat_map(of).flatten().collect())
}

/// Decodes a JPEG file despite warnings, and returns the first one; pixels that are lost are grey
/// or wrong.
///
/// # Errors
/// The message of libjpeg-turbo where it gives up, for example in the header.
pub fn decode(file: &[u8]) -> Result<(Rgb, String), String> {
    let decoder = Decoder::new()?;
    let header = decoder.header(file)?;
    let Header { width, height, cmyk, .. } = header;
    check_size(width, height)?;
    let (format, depth) = if cmyk { (raw::TJPF_TJPF_CMYK, 4) } else { (raw::TJPF_TJPF_RGB, 3) };
    let mut data = vec![0; width * height * depth];
    // SAFETY: `data` holds the pixels of the size in the header, rows without padding (pitch 0).
    let code = unsafe {
        let (bytes, length) = (file.as_ptr(), file.len() as raw::size_t);
        raw::tj3Decompress8(decoder.0, bytes, length, data.as_mut_ptr(), 0, format)
    };
    let warning = decoder.warning(code)?.or(header.warning).unwrap_or_default();
    let data = if cmyk { cmyk_to_rgb(&data) } else { data };
    Ok((Rgb { width, height, data }, warning))
}

/// Size (width, height) in the header of a JPEG file, despite warnings.
///
/// # Errors
/// The message of libjpeg-turbo.
pub fn size(file: &[u8]) -> Result<(usize, usize), String> {
    Decoder::new()?.header(file).map(|h| (h.width, h.height))
}

/// What a file's header says.
struct Header {
    width: usize,
    height: usize,
    cmyk: bool,
    warning: Option<String>,
}

/// A decoder of libjpeg-turbo. The crate `turbojpeg` takes every warning for an error.
struct Decoder(raw::tjhandle);

impl Decoder {
    fn new() -> Result<Self, String> {
        // SAFETY: no requirements.
        let handle = unsafe { raw::tj3Init(raw::TJINIT_TJINIT_DECOMPRESS as i32) };
        if handle.is_null() { Err("no JPEG decoder".into()) } else { Ok(Self(handle)) }
    }

    /// Reads a file's header.
    fn header(&self, file: &[u8]) -> Result<Header, String> {
        // SAFETY: the handle is valid and `file` is readable.
        let code =
            unsafe { raw::tj3DecompressHeader(self.0, file.as_ptr(), file.len() as raw::size_t) };
        let warning = self.warning(code)?;
        // SAFETY: the handle is valid.
        let get = |parameter: raw::TJPARAM| unsafe { raw::tj3Get(self.0, parameter as i32) };
        let size = |parameter| usize::try_from(get(parameter)).unwrap_or(0);
        let colours = get(raw::TJPARAM_TJPARAM_COLORSPACE) as raw::TJCS;
        let [width, height] =
            [raw::TJPARAM_TJPARAM_JPEGWIDTH, raw::TJPARAM_TJPARAM_JPEGHEIGHT].map(size);
        if width == 0 || height == 0 {
            return Err(warning.unwrap_or_else(|| "the file has no image".into()));
        }
        let cmyk = matches!(colours, raw::TJCS_TJCS_CMYK | raw::TJCS_TJCS_YCCK);
        Ok(Header { width, height, cmyk, warning })
    }

    /// The warning after a call that returned `code`, if there is one.
    ///
    /// # Errors
    /// The call failed.
    fn warning(&self, code: i32) -> Result<Option<String>, String> {
        if code == 0 {
            return Ok(None);
        }
        // SAFETY: the handle is valid; the message is copied before the next call.
        let message = unsafe { CStr::from_ptr(raw::tj3GetErrorStr(self.0)) };
        let message = message.to_string_lossy().into_owned();
        let goes_on = WARNINGS.iter().any(|w| message.starts_with(w));
        if goes_on { Ok(Some(message)) } else { Err(message) }
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // SAFETY: the handle is valid and not used afterwards.
        unsafe { raw::tj3Destroy(self.0) }
    }
}
