//! Options of packing, and the fingerprint that `--resume` compares.

use std::io::Read;
use std::path::Path;

use dw_base::{Error, Result};

use crate::boxes::BadBoxes;
use crate::coco;
use crate::pixels::Codec;

/// Policy for images that are missing, damaged or whose size is not the annotated one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BadImages {
    /// Stop with an error that names them.
    Fail,
    /// Leave them out and count them.
    Skip,
}

/// Options of packing.
#[derive(Debug, Clone)]
pub struct Options {
    /// Pixel codec.
    pub codec: Codec,
    /// zstd compression level.
    pub level: i32,
    /// Approximate size of a shard in bytes.
    pub shard_size: u64,
    /// Longest side of stored images in pixels; larger ones are resized. 0: no limit.
    pub max_side: u32,
    /// Policy for invalid boxes.
    pub bad_boxes: BadBoxes,
    /// Policy for unusable images.
    pub bad_images: BadImages,
    /// Keep splits and shards that a previous run finished from the same input.
    pub resume: bool,
    /// Read images outside the image folder of the split, through `file_name` or a symbolic link.
    pub allow_outside: bool,
}

/// Identifies the annotation file and the options that change the contents of a pack. Does not
/// cover the bytes of the images.
pub(super) fn fingerprint(json: &Path, o: &Options) -> Result<String> {
    let (crc, length) = checksum(json)?;
    let outside = if o.allow_outside { " allow-outside" } else { "" };
    Ok(format!(
        "json {crc:08x} {length}; pixels {} level {} shard-size {} max-side {} bad-boxes {:?} \
         bad-images {:?}{outside}",
        o.codec.name(),
        o.level,
        o.shard_size,
        o.max_side,
        o.bad_boxes,
        o.bad_images
    ))
}

/// CRC-32C and length in bytes of a file.
fn checksum(path: &Path) -> Result<(u32, u64)> {
    let mut file = coco::open(path)?;
    let (mut crc, mut length, mut buffer) = (0, 0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(Error::io("cannot read", path))? {
            0 => return Ok((crc, length)),
            n => {
                crc = crc32c::crc32c_append(crc, &buffer[..n]);
                length += n as u64;
            }
        }
    }
}
