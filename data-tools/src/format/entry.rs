//! Entries and metadata of an index file.

use serde::{Deserialize, Serialize};

use super::bytes::{u32_at, u64_at};
use crate::coco::Category;

/// Bytes of an index entry.
pub const ENTRY: usize = 64;

/// Index entry: the position of a record, and the fields that must be known without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Offset from the start of the shard in bytes.
    pub offset: u64,
    /// Length in bytes, header and padding included.
    pub length: u64,
    /// COCO image id.
    pub image_id: i64,
    /// Position of the shard.
    pub shard: u32,
    /// Width of the stored pixels.
    pub width: u32,
    /// Height of the stored pixels.
    pub height: u32,
    /// Number of boxes, excluding crowd regions.
    pub boxes: u32,
    /// Number of crowd regions.
    pub crowd: u32,
    /// CRC-32C of the record.
    pub crc: u32,
    /// Width of the source image, whose pixels are the unit of the boxes; at least `width`.
    pub original_width: u32,
    /// Height of the source image; at least `height`.
    pub original_height: u32,
}

impl Entry {
    /// Serialises the entry.
    pub fn to_bytes(&self) -> [u8; ENTRY] {
        let mut e = [0; ENTRY];
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

    /// Parses one entry of an index of `version`; the checksum of the index has been verified. In
    /// version 1 the original size is the stored size.
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

    /// Size (width, height) of the source image, whose pixels are the unit of boxes and areas.
    pub fn original(&self) -> (u32, u32) {
        (self.original_width, self.original_height)
    }

    /// Whether the stored image is smaller than the source image (`--max-side`).
    pub fn is_shrunken(&self) -> bool {
        self.original() != (self.width, self.height)
    }
}

/// The JSON at the end of an index: split name, categories and source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Name of the split.
    pub split: String,
    /// Categories, ascending by id; the position is the label.
    pub categories: Vec<Category>,
    /// Fingerprint of the annotation file and of the options that change the contents of the pack;
    /// `--resume` compares it.
    pub source: String,
}
