//! COCO data sets as compressed, memory-mapped, checksummed shards.
//!
//! Data flows one way:
//!
//! ```text
//! coco (JSON) -> check (policies) -> pack (rayon) -> writer -> files -> reader -> trainer
//!                                    pixels encodes  format lays out    meaning checks, pixels decodes
//! ```
//!
//! * [`error`]: what can go wrong and the exit code it means
//! * [`input`]: regular files of a bounded size, and nothing else
//! * [`coco`]: `instances_*.json` read as a stream
//! * [`check`]: what is wrong with a data set, and what the chosen policy makes of it
//! * [`pixels`]: the two pixel codecs
//! * [`format`]: the bytes on disk (`docs/shard-format.md` is the same in words)
//! * [`meaning`]: what a pack says, checked beyond its checksums
//! * [`writer`]: shards and index, written aside, synced, renamed
//! * [`pack`]: a COCO folder to shards
//! * [`reader`]: shards to records, zero-copy up to the compressed bytes
//! * [`verify`]: every byte and everything that a pack says
//! * [`export`]: shards back to a COCO folder
//! * [`synth`]: a data set that draws itself
//! * [`threads`]: how many threads, and what happens when they do not start
//! * [`cli`]: what `dw-pack` does with its arguments

pub mod check;
pub mod cli;
pub mod coco;
pub mod error;
pub mod export;
pub mod format;
pub mod input;
pub mod meaning;
pub mod pack;
pub mod pixels;
pub mod reader;
pub mod synth;
pub mod threads;
pub mod verify;
pub mod writer;

pub use error::{Error, Result};
pub use reader::{Record, Split, open_all};
