//! Headers of index and shard files, each with its own CRC-32C.

use std::ops::RangeInclusive;

use super::bytes::{u32_at, u64_at};
use super::entry::ENTRY;

/// Version of the index that is written. Version 1, which has no original sizes, can be read too.
pub const VERSION: u32 = 2;
/// Version of the shard files, which is the same for both versions of the index.
pub const SHARD_VERSION: u32 = 1;
/// Bytes of the header of an index or a shard.
pub const HEADER: usize = 64;
/// Bytes of a row of the shard table: length and number of records of a shard, u64 each.
pub const SHARD_ROW: usize = 16;
const INDEX_MAGIC: [u8; 8] = *b"DWINDEX\0";
const SHARD_MAGIC: [u8; 8] = *b"DWSHARD\0";

/// Stores the checksum of a header in its last four bytes.
fn with_checksum(mut header: [u8; HEADER]) -> [u8; HEADER] {
    let crc = crc32c::crc32c(&header[..60]);
    header[60..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// Checks magic, version and checksum of a header and returns its version.
fn check_header(
    bytes: &[u8],
    magic: [u8; 8],
    versions: RangeInclusive<u32>,
    kind: &str,
) -> Result<u32, String> {
    if bytes.len() < HEADER {
        return Err(format!("expected at least {HEADER} bytes, found {}", bytes.len()));
    }
    if bytes[..8] != magic {
        return Err(format!("expected a {kind} file, found another signature (first 8 bytes)"));
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
        return Err("the header checksum does not match: the file is damaged".into());
    }
    Ok(version)
}

/// Header of an index file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexHeader {
    /// Format version, 1 or [`VERSION`].
    pub version: u32,
    /// [`crate::pixels::Codec::code`] the pack was made with. Individual records may be stored
    /// differently, such as a PNG in a `jpeg` pack.
    pub codec: u32,
    /// Tag in the file names of the shards.
    pub tag: u32,
    /// Number of entries.
    pub records: u64,
    /// Number of shards.
    pub shards: u64,
    /// Length of the meta JSON.
    pub meta_len: u64,
    /// CRC-32C of everything after the header.
    pub body_crc: u32,
}

impl IndexHeader {
    /// Serialises the header.
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
        with_checksum(h)
    }

    /// Parses an index file and checks header, length and checksum of the body.
    ///
    /// # Errors
    /// The expected and the found length, version or checksum.
    pub fn from_bytes(file: &[u8]) -> Result<Self, String> {
        let h = Self {
            version: check_header(file, INDEX_MAGIC, 1..=VERSION, "`.dwindex`")?,
            codec: u32_at(file, 12),
            records: u64_at(file, 16),
            shards: u64_at(file, 24),
            meta_len: u64_at(file, 32),
            body_crc: u32_at(file, 40),
            tag: u32_at(file, 44),
        };
        let body = u128::from(h.records) * ENTRY as u128
            + u128::from(h.shards) * SHARD_ROW as u128
            + u128::from(h.meta_len);
        if body + HEADER as u128 != file.len() as u128 {
            return Err(format!(
                "expected {} bytes, found {}: the file was truncated or extended",
                body + HEADER as u128,
                file.len()
            ));
        }
        if crc32c::crc32c(&file[HEADER..]) != h.body_crc {
            return Err("the checksum does not match: the file is damaged".into());
        }
        Ok(h)
    }
}

/// Header of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardHeader {
    /// Position among the shards of the split.
    pub shard: u32,
    /// Number of records.
    pub records: u64,
    /// Length of the file in bytes.
    pub bytes: u64,
}

impl ShardHeader {
    /// Serialises the header.
    pub fn to_bytes(&self) -> [u8; HEADER] {
        let mut h = [0; HEADER];
        h[..8].copy_from_slice(&SHARD_MAGIC);
        h[8..12].copy_from_slice(&SHARD_VERSION.to_le_bytes());
        h[12..16].copy_from_slice(&self.shard.to_le_bytes());
        h[16..24].copy_from_slice(&self.records.to_le_bytes());
        h[24..32].copy_from_slice(&self.bytes.to_le_bytes());
        with_checksum(h)
    }

    /// Parses the header of a shard file.
    ///
    /// # Errors
    /// The expected and the found length, version or checksum.
    pub fn from_bytes(file: &[u8]) -> Result<Self, String> {
        check_header(file, SHARD_MAGIC, SHARD_VERSION..=SHARD_VERSION, "`.dwshard`")?;
        Ok(Self { shard: u32_at(file, 12), records: u64_at(file, 16), bytes: u64_at(file, 24) })
    }
}
