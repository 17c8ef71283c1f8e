//! Options of packing, and the fingerprint that `--resume` compares.

use crate::boxes::BadBoxes;
use crate::input::BadImages;
use crate::pixels::{Codec, Exif, ExifBoxes};

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
    /// Treatment of EXIF orientations. `None` ignores them where the size of the image is
    /// annotated, and is an error elsewhere.
    pub exif: Option<Exif>,
    /// What boxes refer to where the annotated size is ambiguous; only with [`Exif::Apply`].
    pub exif_boxes: Option<ExifBoxes>,
    /// Keep splits and shards that a previous run finished from the same input.
    pub resume: bool,
    /// Read images outside the image folder of the split, through `file_name` or a symbolic link.
    pub allow_outside: bool,
}

/// Identifies the annotations, by their checksum `annotations`, and the options that change the
/// contents of a pack. The bytes of the images are not included.
pub(super) fn fingerprint(annotations: &str, o: &Options) -> String {
    let outside = if o.allow_outside { " allow-outside" } else { "" };
    let exif = match o.exif {
        // Both give the same shards: without the option, an image that needs it is an error.
        None | Some(Exif::Ignore) => String::new(),
        Some(Exif::Apply) => format!(" exif {:?}", o.exif_boxes),
    };
    format!(
        "{annotations}; pixels {} level {} shard-size {} max-side {} bad-boxes {:?} \
         bad-images {:?}{outside}{exif}",
        o.codec.name(),
        o.level,
        o.shard_size,
        o.max_side,
        o.bad_boxes,
        o.bad_images
    )
}
