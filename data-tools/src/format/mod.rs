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

mod record;

pub use record::{Annotations, GtBox, decode_record, encode_record};

/// Version of the index that is written. Version 1, which had no original sizes, is read as well.
pub const VERSION: u32 = 2;
/// Version of the shards: their bytes are the same under both versions of the index.
pub const SHARD_VERSION: u32 = 1;
/// Length of the headers of index and shards, and of an index entry.
pub const HEADER: usize = 64;
/// Length of a record's header.
pub const RECORD_HEADER: usize = 32;
const INDEX_MAGIC: [u8; 8] = *b"DWINDEX\0";
const SHARD_MAGIC: [u8; 8] = *b"DWSHARD\0";

/// File name of a split's index.
pub fn index_name(split: &str) -> String {
    format!("{split}.dwindex")
}

/// File name of a shard; `tag` differs whenever the contents differ, so a new pack never overwrites
/// an old one's shards.
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

/// Checks a header; returns its version, which must be among `versions`.
fn unseal(
    bytes: &[u8],
    magic: [u8; 8],
    versions: std::ops::RangeInclusive<u32>,
    what: &str,
) -> Result<u32, String> {
    if bytes.len() < HEADER {
        return Err(format!("expected at least {HEADER} bytes, found {}", bytes.len()));
    }
    if bytes[..8] != magic {
        return Err(format!("not a {what} (its first 8 bytes differ)"));
    }
    let version = u32_at(bytes, 8);
    if !versions.contains(&version) {
        return Err(format!(
            "expected format version {}, found {version}\n\
             hint: pack the data again with this version",
            versions.end()
        ));
    }
    if crc32c::crc32c(&bytes[..60]) != u32_at(bytes, 60) {
        return Err("header checksum does not match: the file is damaged".into());
    }
    Ok(version)
}

/// Header of an index file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexHeader {
    /// Format version, 1 or [`VERSION`].
    pub version: u32,
    /// [`crate::pixels::Codec::code`] asked for; single records may differ (a PNG in a `jpeg`
    /// pack).
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
        h[8..12].copy_from_slice(&self.version.to_le_bytes());
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
        let h = Self {
            version: unseal(file, INDEX_MAGIC, 1..=VERSION, "dw index")?,
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
        h[8..12].copy_from_slice(&SHARD_VERSION.to_le_bytes());
        h[12..16].copy_from_slice(&self.shard.to_le_bytes());
        h[16..24].copy_from_slice(&self.records.to_le_bytes());
        h[24..32].copy_from_slice(&self.bytes.to_le_bytes());
        seal(h)
    }

    /// From the file's bytes.
    pub fn from_bytes(file: &[u8]) -> Result<Self, String> {
        unseal(file, SHARD_MAGIC, SHARD_VERSION..=SHARD_VERSION, "dw shard")?;
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
    /// Of the stored pixels.
    pub width: u32,
    /// Of the stored pixels.
    pub height: u32,
    /// Boxes to train on.
    pub boxes: u32,
    /// Crowd regions beside them.
    pub crowd: u32,
    /// The record's checksum.
    pub crc: u32,
    /// Of the source image, in whose pixels the boxes are. At least `width`.
    pub original_width: u32,
    /// Of the source image. At least `height`.
    pub original_height: u32,
}

impl Entry {
    /// As bytes.
    pub fn to_bytes(&self) -> [u8; HEADER] {
        let mut e = [0; HEADER];
        e[..8].copy_from_slice(&self.offset.to_le_bytes());
        e[8..16].copy_from_slice(&self.length.to_le_bytes());
        e[16..24].copy_from_slice(&self.image_id.to_le_bytes());
        let numbers = [
            self.shard,
            self.width,
            self.height,
            self.boxes,
            self.crowd,
            self.crc,
            self.original_width,
            self.original_height,
        ];
        for (place, v) in e[24..].chunks_exact_mut(4).zip(numbers) {
            place.copy_from_slice(&v.to_le_bytes());
        }
        e
    }

    /// From the 64 bytes of an index of `version` (already under the index's checksum). In version
    /// 1 the original size is the stored size.
    pub fn from_bytes(e: &[u8], version: u32) -> Self {
        let (width, height) = (u32_at(e, 28), u32_at(e, 32));
        let (original_width, original_height) =
            if version == 1 { (width, height) } else { (u32_at(e, 48), u32_at(e, 52)) };
        Self {
            offset: u64_at(e, 0),
            length: u64_at(e, 8),
            image_id: u64_at(e, 16) as i64,
            shard: u32_at(e, 24),
            width,
            height,
            boxes: u32_at(e, 36),
            crowd: u32_at(e, 40),
            crc: u32_at(e, 44),
            original_width,
            original_height,
        }
    }

    /// Size (width, height) of the source image, in whose pixels boxes and areas are.
    pub fn original(&self) -> (u32, u32) {
        (self.original_width, self.original_height)
    }

    /// Whether the stored pixels are a smaller copy of the source image (`--max-side`).
    pub fn is_shrunken(&self) -> bool {
        self.original() != (self.width, self.height)
    }
}

/// Split name, categories and provenance: the JSON at the end of an index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Name of the split.
    pub split: String,
    /// Ascending by id; the position is the label.
    pub categories: Vec<Category>,
    /// Fingerprint of the annotation file and of the options that shaped the pack (`--resume`
    /// compares it).
    pub source: String,
}
