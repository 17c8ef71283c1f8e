//! Records: header, annotations and pixels of one image.

use dw_base::text::shown;

use super::bytes::{u32_at, u64_at};
use super::entry::Entry;

/// Bytes of the header of a record.
pub const RECORD_HEADER: usize = 32;
/// Bytes of a box.
const BOX: usize = 56;
/// Maximum size in bytes of the annotations of a record before compression: a few million boxes.
const MAX_ANNOTATION_BYTES: usize = 256 << 20;

/// A ground-truth box, with the fields of a COCO annotation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GtBox {
    /// COCO annotation id.
    pub id: i64,
    /// `[x, y, w, h]` in pixels of the original image.
    pub bbox: [f64; 4],
    /// Mask area in square pixels of the original image.
    pub area: f64,
    /// Index of the category, `0..C`.
    pub label: u32,
    /// Whether this is a crowd region: not trained on, and ignored by the metric.
    pub crowd: bool,
}

/// Uncompressed annotations of a record.
#[derive(Debug, Clone, PartialEq)]
pub struct Annotations {
    /// File name relative to the image folder of the split.
    pub file_name: String,
    /// Boxes in the order of the annotation file.
    pub boxes: Vec<GtBox>,
}

impl Annotations {
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 + self.file_name.len() + BOX * self.boxes.len());
        out.extend((self.file_name.len() as u32).to_le_bytes());
        out.extend(self.file_name.as_bytes());
        out.extend((self.boxes.len() as u32).to_le_bytes());
        for b in &self.boxes {
            out.extend(b.id.to_le_bytes());
            for v in b.bbox.into_iter().chain([b.area]) {
                out.extend(v.to_le_bytes());
            }
            out.extend(b.label.to_le_bytes());
            out.extend(u32::from(b.crowd).to_le_bytes());
        }
        out
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let name_len = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let file_name = std::str::from_utf8(bytes.get(4..4 + name_len)?).ok()?.to_owned();
        let rest = bytes.get(4 + name_len..)?;
        let count = u32::from_le_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let rest = rest.get(4..)?;
        if rest.len() != count.checked_mul(BOX)? {
            return None;
        }
        let f = |b: &[u8], i: usize| f64::from_bits(u64_at(b, 8 * i));
        let boxes = rest
            .chunks_exact(BOX)
            .map(|b| GtBox {
                id: u64_at(b, 0) as i64,
                bbox: [f(b, 1), f(b, 2), f(b, 3), f(b, 4)],
                area: f(b, 5),
                label: u32_at(b, 48),
                crowd: u32_at(b, 52) != 0,
            })
            .collect();
        Some(Self { file_name, boxes })
    }
}

/// Serialises a record; returns its bytes and their checksum. `codec` is the code of the pixels'
/// [`Layout`](crate::pixels::Layout), `level` the zstd level of the annotations.
///
/// # Errors
/// More than 256 MiB of annotations, or an error of zstd.
pub fn encode_record(
    image_id: i64,
    codec: u32,
    annotations: &Annotations,
    pixels: &[u8],
    level: i32,
) -> std::io::Result<(Vec<u8>, u32)> {
    let raw = annotations.to_bytes();
    if raw.len() > MAX_ANNOTATION_BYTES {
        let problem = format!(
            "expected at most {MAX_ANNOTATION_BYTES} bytes of annotations, found {} bytes \
             ({} boxes of `{}`)",
            raw.len(),
            annotations.boxes.len(),
            shown(&annotations.file_name)
        );
        return Err(std::io::Error::other(problem));
    }
    let packed = zstd::bulk::compress(&raw, level)?;
    let mut out = Vec::with_capacity(RECORD_HEADER + packed.len() + pixels.len() + 8);
    out.extend([0; 4]);
    out.extend(codec.to_le_bytes());
    out.extend(image_id.to_le_bytes());
    out.extend((packed.len() as u32).to_le_bytes());
    out.extend((raw.len() as u32).to_le_bytes());
    out.extend((pixels.len() as u64).to_le_bytes());
    out.extend(packed);
    out.extend(pixels);
    out.resize(out.len().next_multiple_of(8), 0);
    let crc = crc32c::crc32c(&out[4..]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
    Ok((out, crc))
}

/// Splits a record into the code of its layout, its annotations and its pixel bytes.
///
/// # Errors
/// A checksum, id or length that does not match the index entry, or malformed annotations.
pub fn decode_record<'a>(
    record: &'a [u8],
    entry: &Entry,
) -> Result<(u32, Annotations, &'a [u8]), String> {
    if record.len() < RECORD_HEADER {
        return Err(format!("expected at least {RECORD_HEADER} bytes, found {}", record.len()));
    }
    let crc = crc32c::crc32c(&record[4..]);
    if crc != u32_at(record, 0) || crc != entry.crc {
        return Err(format!(
            "the checksum does not match: expected {:08x}, found {crc:08x}; the data is damaged",
            entry.crc
        ));
    }
    let (ann_len, raw_len) = (u32_at(record, 16) as usize, u32_at(record, 20) as usize);
    let pixel_len = u64_at(record, 24) as usize;
    let end = RECORD_HEADER.checked_add(ann_len).and_then(|n| n.checked_add(pixel_len));
    if u64_at(record, 8) as i64 != entry.image_id
        || end.and_then(|n| n.checked_next_multiple_of(8)) != Some(record.len())
    {
        return Err("image id or lengths in the record header do not match the index".into());
    }
    let frame = &record[RECORD_HEADER..RECORD_HEADER + ann_len];
    // Checked before decompression, so that a short damaged frame cannot cause a large allocation.
    let content_size = zstd::zstd_safe::get_frame_content_size(frame).ok().flatten();
    if raw_len > MAX_ANNOTATION_BYTES || content_size != Some(raw_len as u64) {
        return Err(format!(
            "annotations: expected a zstd frame with {raw_len} bytes of content (at most \
             {MAX_ANNOTATION_BYTES}), found another content size"
        ));
    }
    let raw = zstd::bulk::decompress(frame, raw_len).map_err(|e| format!("annotations: {e}"))?;
    let annotations = Annotations::from_bytes(&raw).ok_or("annotations: malformed")?;
    Ok((
        u32_at(record, 4),
        annotations,
        &record[RECORD_HEADER + ann_len..RECORD_HEADER + ann_len + pixel_len],
    ))
}
