//! COCO data sets as compressed, memory-mapped, checksummed shards.
//!
//! ```text
//! packing: coco (JSON) -> boxes -> pack -> pixels (encode) -> format -> writer -> files
//! reading: files -> reader -> format -> validate -> pixels (decode)
//! ```
//!
//! Modules in dependency order:
//!
//! * [`input`]: opens regular files of a limited size
//! * [`threads`]: thread pools of a checked size
//! * [`coco`]: parses `instances_*.json` as a stream
//! * [`pixels`]: the two pixel codecs
//! * [`format`]: the bytes on disk, specified in `docs/shard-format.md`
//! * [`boxes`]: ground-truth boxes of a COCO file under a policy for invalid ones
//! * [`validate`]: checks the values in a pack
//! * [`writer`]: writes the shards and the index of a split
//! * [`reader`]: opens splits and reads records
//! * [`verify`]: checks every byte and every record of a split
//! * [`pack`]: converts a COCO folder into shards
//! * [`export`]: converts shards into a COCO folder
//! * [`synth`]: generates a synthetic data set
//! * [`cli`]: the command line of `dw-pack`

pub mod boxes;
pub mod cli;
pub mod coco;
pub mod export;
pub mod format;
pub mod input;
pub mod pack;
pub mod pixels;
pub mod reader;
pub mod synth;
pub mod threads;
pub mod validate;
pub mod verify;
pub mod writer;

pub use dw_base::{Error, Result};
pub use reader::{Record, Split, open_all};
