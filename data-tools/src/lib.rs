//! Detection data sets as compressed, memory-mapped, checksummed shards.
//!
//! ```text
//! packing: sources -> boxes -> pack -> pixels (encode) -> format -> writer -> files
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
//! * [`sources`]: finds and reads data sets in the layouts of COCO, Pascal VOC and YOLO
//! * [`writer`]: writes the shards and the index of a split
//! * [`reader`]: opens splits and reads records
//! * [`verify`]: checks every byte and every record of a split
//! * [`pack`]: converts a data set into shards
//! * [`export`]: converts shards into a COCO, VOC or YOLO folder
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
pub mod sources;
pub mod synth;
pub mod threads;
pub mod validate;
pub mod verify;
pub mod writer;

pub use dw_base::{Error, Result};
pub use reader::{Record, Split, open_all};
