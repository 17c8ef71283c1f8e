//! The bytes on disk, all little-endian; specified in `docs/shard-format.md`.
//!
//! ```text
//! SPLIT.dwindex            header 64 | entries, 64 each | shard table, 16 each | meta (JSON)
//! SPLIT-TAG-00000.dwshard  header 64 | records, each padded to 8 bytes
//! record                   header 32 | annotations (zstd frame) | pixels | zeros to 8 bytes
//! ```
//!
//! Every byte is covered by a CRC-32C: each header by its own, the body of the index by the one in
//! its header, and each record, including padding, by the one in the record, which is repeated in
//! the index entry.

mod bytes;
mod entry;
mod header;
mod record;

pub use entry::{ENTRY, Entry, Meta};
pub use header::{HEADER, IndexHeader, SHARD_ROW, SHARD_VERSION, ShardHeader, VERSION};
pub use record::{Annotations, GtBox, RECORD_HEADER, decode_record, encode_record};

/// File name of the index of a split.
pub fn index_name(split: &str) -> String {
    format!("{split}.dwindex")
}

/// File name of a shard. `tag` differs for different contents, so that packing again never
/// overwrites the shards of the previous pack.
pub fn shard_name(split: &str, tag: u32, shard: u32) -> String {
    format!("{split}-{tag:08x}-{shard:05}.dwshard")
}
