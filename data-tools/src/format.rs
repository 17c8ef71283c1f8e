//! The bytes on disk, all little-endian; `docs/shard-format.md` describes the same in words.
//!
//! ```text
//! SPLIT.dwindex               header 64 | entries 64 each | shard table 16 each | meta (JSON)
//! SPLIT-TAG-00000.dwshard     header 64 | records, each padded to 8 bytes
//! record                      header 32 | annotations (zstd frame) | pixels | zeros to a multiple of 8
//! ```
//!
//! Every byte is under a CRC-32C: headers under their own, the index's body under the header's,
//! a record (padding included) under the record's, which the index repeats.

use serde::{Deserialize, Serialize};

use crate::coco::Category;

/// Version of this layout.
pub const VERSION: u32 = 1;
/// Length of the headers of index and shards, and of an index entry.
pub const HEADER: usize = 64;
/// Length of a record's header.
pub const RECORD_HEADER: usize = 32;
const INDEX_MAGIC: [u8; 8] = *b"DWINDEX\0";
const SHARD_MAGIC: [u8; 8] = *b"DWSHARD\0";
const BOX: usize = 56;

/// File name of a split's index.
pub fn index_name(split: &str) -> String {
    format!("{split}.dwindex")
}

/// File name of a shard; `tag` differs whenever the contents differ, so a new pack never overwrites an old one's shards.
pub fn shard_name(split: &str, tag: u32, shard: u32) -> String {
    format!("{split}-{tag:08x}-{shard:05}.dwshard")
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u32_at(bytes, at) as u64 | (u32_at(bytes, at + 4) as u64) << 32
}

fn seal(mut header: [u8; HEADER]) -> [u8; HEADER] {
    let crc = crc32c::crc32c(&header[..60]);
    header[60..].copy_from_slice(&crc.to_le_bytes());
    header
}

fn unseal(bytes: &[u8], magic: [u8; 8], what: &str) -> Result<(), String> {
    if bytes.len() < HEADER {
        return Err(format!("expected at least {HEADER} bytes, found {}", bytes.len()));
    }
    if bytes[..8] != magic {
        return Err(format!("not a {what} (its first 8 bytes differ)"));
    }
    let version = u32_at(bytes, 8);
    if version != VERSION {
        return Err(format!(
            "expected format version {VERSION}, found {version}; pack the data again with this version"
        ));
    }
    if crc32c::crc32c(&bytes[..60]) != u32_at(bytes, 60) {
        return Err("header checksum does not match: the file is damaged".into());
    }
    Ok(())
}

/// Header of an index file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexHeader {
    /// [`crate::pixels::Codec::code`] asked for; single records may differ (a PNG in a `jpeg` pack).
    pub codec: u32,
    /// Tag in the shards' names.
    pub tag: u32,
    /// Number of entries.
    pub records: u64,
    /// Number of shards.
    pub shards: u64,
    /// Length of the meta JSON.
    pub meta_len: u64,
    /// CRC-32C of everything behind the header.
    pub body_crc: u32,
}

impl IndexHeader {
    /// As bytes.
    pub fn to_bytes(&self) -> [u8; HEADER] {
        let mut h = [0; HEADER];
        h[..8].copy_from_slice(&INDEX_MAGIC);
        h[8..12].copy_from_slice(&VERSION.to_le_bytes());
        h[12..16].copy_from_slice(&self.codec.to_le_bytes());
        h[16..24].copy_from_slice(&self.records.to_le_bytes());
        h[24..32].copy_from_slice(&self.shards.to_le_bytes());
        h[32..40].copy_from_slice(&self.meta_len.to_le_bytes());
        h[40..44].copy_from_slice(&self.body_crc.to_le_bytes());
        h[44..48].copy_from_slice(&self.tag.to_le_bytes());
        seal(h)
    }

    /// From the file's bytes; checks header, length and body.
    ///
    /// # Errors
    /// What differs from a whole index file.
    pub fn from_bytes(file: &[u8]) -> Result<Self, String> {
        unseal(file, INDEX_MAGIC, "dw index")?;
        let h = Self {
            codec: u32_at(file, 12),
            records: u64_at(file, 16),
            shards: u64_at(file, 24),
            meta_len: u64_at(file, 32),
            body_crc: u32_at(file, 40),
            tag: u32_at(file, 44),
        };
        let body = u128::from(h.records) * HEADER as u128
            + u128::from(h.shards) * 16
            + u128::from(h.meta_len);
        if body + HEADER as u128 != file.len() as u128 {
            return Err(format!(
                "expected {} bytes, found {}: the file was cut or extended",
                body + HEADER as u128,
                file.len()
            ));
        }
        if crc32c::crc32c(&file[HEADER..]) != h.body_crc {
            return Err("checksum does not match: the file is damaged".into());
        }
        Ok(h)
    }
}

/// Header of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardHeader {
    /// Position among the split's shards.
    pub shard: u32,
    /// Records in it.
    pub records: u64,
    /// Length of the file.
    pub bytes: u64,
}

impl ShardHeader {
    /// As bytes.
    pub fn to_bytes(&self) -> [u8; HEADER] {
        let mut h = [0; HEADER];
        h[..8].copy_from_slice(&SHARD_MAGIC);
        h[8..12].copy_from_slice(&VERSION.to_le_bytes());
        h[12..16].copy_from_slice(&self.shard.to_le_bytes());
        h[16..24].copy_from_slice(&self.records.to_le_bytes());
        h[24..32].copy_from_slice(&self.bytes.to_le_bytes());
        seal(h)
    }

    /// From the file's bytes.
    pub fn from_bytes(file: &[u8]) -> Result<Self, String> {
        unseal(file, SHARD_MAGIC, "dw shard")?;
        Ok(Self { shard: u32_at(file, 12), records: u64_at(file, 16), bytes: u64_at(file, 24) })
    }
}

/// Where a record is, and what the sampler must know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// From the start of the shard, bytes.
    pub offset: u64,
    /// Header and padding included, bytes.
    pub length: u64,
    /// COCO image id.
    pub image_id: i64,
    /// Shard's position.
    pub shard: u32,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Boxes to train on.
    pub boxes: u32,
    /// Crowd regions beside them.
    pub crowd: u32,
    /// The record's checksum.
    pub crc: u32,
}

impl Entry {
    /// As bytes.
    pub fn to_bytes(&self) -> [u8; HEADER] {
        let mut e = [0; HEADER];
        e[..8].copy_from_slice(&self.offset.to_le_bytes());
        e[8..16].copy_from_slice(&self.length.to_le_bytes());
        e[16..24].copy_from_slice(&self.image_id.to_le_bytes());
        for (i, v) in [self.shard, self.width, self.height, self.boxes, self.crowd, self.crc]
            .into_iter()
            .enumerate()
        {
            e[24 + 4 * i..28 + 4 * i].copy_from_slice(&v.to_le_bytes());
        }
        e
    }

    /// From 64 bytes (already under the index's checksum).
    pub fn from_bytes(e: &[u8]) -> Self {
        Self {
            offset: u64_at(e, 0),
            length: u64_at(e, 8),
            image_id: u64_at(e, 16) as i64,
            shard: u32_at(e, 24),
            width: u32_at(e, 28),
            height: u32_at(e, 32),
            boxes: u32_at(e, 36),
            crowd: u32_at(e, 40),
            crc: u32_at(e, 44),
        }
    }
}

/// Split name, categories and provenance: the JSON at the end of an index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Name of the split.
    pub split: String,
    /// Ascending by id; the position is the label.
    pub categories: Vec<Category>,
    /// Fingerprint of the annotation file and of the options that shaped the pack (`--resume` compares it).
    pub source: String,
}

/// A box as COCO has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GtBox {
    /// COCO annotation id.
    pub id: i64,
    /// `[x, y, w, h]`, pixels of the stored image.
    pub bbox: [f64; 4],
    /// Mask area in pixels.
    pub area: f64,
    /// `0..C`.
    pub label: u32,
    /// A region of many objects: never trained on, ignored by the metric.
    pub crowd: bool,
}

/// A record's annotations before compression.
#[derive(Debug, Clone, PartialEq)]
pub struct Annotations {
    /// Name below the split's image folder.
    pub file_name: String,
    /// In file order.
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

/// A record as bytes; returns them with their checksum.
pub fn encode_record(
    image_id: i64,
    codec: u32,
    annotations: &Annotations,
    pixels: &[u8],
    level: i32,
) -> std::io::Result<(Vec<u8>, u32)> {
    let raw = annotations.to_bytes();
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

/// A record's parts: codec, annotations, pixel bytes.
///
/// # Errors
/// A checksum or a length that does not hold.
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
            "checksum does not match: expected {:08x}, found {crc:08x}; the data is damaged",
            entry.crc
        ));
    }
    let (ann_len, raw_len) = (u32_at(record, 16) as usize, u32_at(record, 20) as usize);
    let pixel_len = u64_at(record, 24) as usize;
    let end = RECORD_HEADER.checked_add(ann_len).and_then(|n| n.checked_add(pixel_len));
    if u64_at(record, 8) as i64 != entry.image_id
        || end.is_none_or(|n| n.next_multiple_of(8) != record.len())
    {
        return Err("the record's header and the index disagree".into());
    }
    let frame = &record[RECORD_HEADER..RECORD_HEADER + ann_len];
    let raw = zstd::bulk::decompress(frame, raw_len).map_err(|e| format!("annotations: {e}"))?;
    let annotations = Annotations::from_bytes(&raw).ok_or("annotations: malformed")?;
    Ok((
        u32_at(record, 4),
        annotations,
        &record[RECORD_HEADER + ann_len..RECORD_HEADER + ann_len + pixel_len],
    ))
}
