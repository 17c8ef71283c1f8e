//! Arguments of `dw-pack`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::boxes::BadBoxes;
use crate::export::Format as ExportFormat;
use crate::input::BadImages;
use crate::pixels::{Codec, Exif, ExifBoxes};
use crate::sources::{Difficult, Format};

const EXAMPLES: &str = "Examples:
  dw-pack coco/                          pack every split of a data set into coco/shards
  dw-pack VOC2007/ -o shards             Pascal VOC; YOLO and Roboflow folders likewise
  dw-pack --annotations boxes.json --images photos/ --val 10% -o shards
  dw-pack coco/ -o /fast/shards --split train2017 --split val2017
  dw-pack info coco/shards               print counts and sizes
  dw-pack verify coco/shards             check every byte on all cores
  dw-pack synth shapes/ --images 600 --val 100 --seed 1 --classes 6
  dw-pack export coco/shards back/       convert shards into a COCO folder (or --format voc, yolo)

Data sets are recognised by their files:
  COCO         annotations/instances_SPLIT.json, images in SPLIT/
  Roboflow     SPLIT/_annotations.coco.json beside the images
  Pascal VOC   Annotations/*.xml, JPEGImages/, ImageSets/Main/SPLIT.txt; or SPLIT/*.xml
  YOLO         data.yaml or classes.txt, images/SPLIT and labels/SPLIT or SPLIT/images and
               SPLIT/labels

Images are JPEG, PNG, WebP, BMP or TIFF files of at most 512 MiB and 268 million pixels.
Exit codes: 0 success, 2 usage error, 3 invalid data or failed I/O, 5 out of memory or threads";

/// Pack a detection data set into compressed, memory-mapped, checksummed shards.
#[derive(Debug, Parser)]
#[command(
    name = "dw-pack",
    version = concat!(env!("CARGO_PKG_VERSION"), " (", env!("DW_GIT"), ")"),
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(subcommand)]
    pub(super) command: Option<Command>,
    #[command(flatten)]
    pub(super) pack: PackArgs,
}

/// Arguments of `dw-pack` without a subcommand, which packs a data set.
#[derive(Debug, Args)]
pub(super) struct PackArgs {
    /// Folder of the data set
    #[arg(required_unless_present = "annotations")]
    pub(super) dir: Option<PathBuf>,
    /// Output folder [default: DIR/shards]
    #[arg(short, long)]
    pub(super) out: Option<PathBuf>,
    /// Format of the annotations
    #[arg(long, value_enum, default_value = "auto")]
    pub(super) format: Format,
    /// COCO annotation file anywhere, instead of DIR
    #[arg(long, value_name = "FILE", conflicts_with = "dir", requires_all = ["images", "out"])]
    pub(super) annotations: Option<PathBuf>,
    /// Image folder of --annotations
    #[arg(long, value_name = "DIR", requires = "annotations")]
    pub(super) images: Option<PathBuf>,
    /// Fraction of the images assigned to the split `val` by a checksum of the file name, for data
    /// sets without splits, for example 10% or 0.1 [default: 10%]
    #[arg(long, value_name = "SHARE", value_parser = parse_share)]
    pub(super) val: Option<f64>,
    /// Objects marked `difficult`, in Pascal VOC only: neither train on nor count them, keep them,
    /// or drop them [default: ignore]
    #[arg(long, value_enum)]
    pub(super) difficult: Option<Difficult>,
    /// Pack only this split (can be repeated)
    #[arg(long, value_name = "NAME")]
    pub(super) split: Vec<String>,
    /// Pixel codec: decoded and compressed with zstd (faster to read), or the JPEG file (smaller)
    #[arg(long, value_enum, default_value = "zstd")]
    pub(super) pixels: Codec,
    /// zstd compression level
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=19))]
    pub(super) level: i32,
    /// Approximate size of a shard, as 256MiB or 1GB
    #[arg(long, default_value = "256MiB", value_parser = parse_size)]
    pub(super) shard_size: u64,
    /// Number of threads, at most four per core [default: all cores]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub(super) jobs: usize,
    /// Resize images whose longer side exceeds this many pixels (0: never). Boxes, and the results
    /// of training and evaluation, stay in pixels of the original image
    #[arg(long, default_value_t = 0)]
    pub(super) max_side: u32,
    /// Policy for boxes without area or outside their image
    #[arg(long, value_enum, default_value = "drop")]
    pub(super) bad_boxes: BadBoxes,
    /// Policy for images that are missing, damaged or not of the annotated size
    #[arg(long, value_enum, default_value = "fail")]
    pub(super) bad_images: BadImages,
    /// EXIF orientation of images: ignore it, as COCO's tools do, or apply it to the pixels, and to
    /// the boxes where the annotated size is the stored one [default: ignore, but an error for
    /// images whose size is not annotated]
    #[arg(long, value_enum)]
    pub(super) exif: Option<Exif>,
    /// With --exif apply, what boxes refer to where the annotated size is ambiguous: the stored
    /// pixels or the displayed image
    #[arg(long, value_enum)]
    pub(super) exif_boxes: Option<ExifBoxes>,
    /// Also read images through an absolute file_name, `..`, links to folders, or symbolic links
    /// that leave the image folder of the split
    #[arg(long)]
    pub(super) allow_outside: bool,
    /// Keep splits and shards that a previous run finished with the same annotations and options
    #[arg(long)]
    pub(super) resume: bool,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print counts and sizes of a packed data set
    Info {
        /// Folder of shards
        out: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Check every byte, box, label, name and size; report the first bad record of each shard
    Verify {
        /// Folder of shards
        out: PathBuf,
    },
    /// Generate a synthetic data set of shapes in COCO format
    Synth {
        /// Output folder
        dir: PathBuf,
        /// Number of training images
        #[arg(long, default_value_t = 600)]
        images: usize,
        /// Number of validation images
        #[arg(long, default_value_t = 100)]
        val: usize,
        /// Random seed; the same seed gives the same images
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Number of classes
        #[arg(long, default_value_t = 6)]
        classes: usize,
        /// Longer side of the images in pixels
        #[arg(long, default_value_t = 256)]
        side: u32,
    },
    /// Convert shards into a folder of another format
    Export {
        /// Folder of shards
        out: PathBuf,
        /// Output folder, new or empty
        dir: PathBuf,
        /// Format of the annotations
        #[arg(long, value_enum, default_value = "coco")]
        format: ExportFormat,
    },
    /// Measure the throughput of reading, checking and decoding records
    Bench {
        /// Folder of shards
        out: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Parses a share of a whole: `10%` or `0.1`.
fn parse_share(text: &str) -> Result<f64, String> {
    let (number, unit) = match text.strip_suffix('%') {
        Some(number) => (number, 0.01),
        None => (text, 1.0),
    };
    let share: Option<f64> = number.trim().parse().ok().map(|v: f64| v * unit);
    share
        .filter(|v| *v > 0.0 && *v < 1.0)
        .ok_or_else(|| format!("expected a share between 0 and 1, as 10% or 0.1, found `{text}`"))
}

/// Parses a number of bytes with an optional unit.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits]
        .parse()
        .map_err(|_| format!("expected a size such as 256MiB, found `{text}`"))?;
    let unit = match text[digits..].trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1000 * 1000,
        "GB" => 1000 * 1000 * 1000,
        "KiB" | "K" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        other => {
            return Err(format!("expected the unit KiB, MiB, GiB, kB, MB or GB, found `{other}`"));
        }
    };
    match number.checked_mul(unit) {
        Some(n) if n >= 4096 => Ok(n),
        Some(_) => Err(format!("expected at least 4 KiB, found `{text}`")),
        None => Err(format!("expected less than 16 EiB, found `{text}`")),
    }
}
