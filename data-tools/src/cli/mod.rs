//! What `dw-pack` does with its arguments. Results go to stdout, everything else to stderr.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the command line's own output")]

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use dw_base::text::shown;
use indicatif::{ProgressBar, ProgressStyle};

use crate::check::BadBoxes;
use crate::error::Result;
use crate::pack::BadImages;
use crate::pixels::Codec;
use crate::{synth, threads};

mod pack;
mod show;

const EXAMPLES: &str = "Examples:
  dw-pack coco/                          pack every split of a COCO folder into coco/shards
  dw-pack coco/ -o /fast/shards --split train2017 --split val2017
  dw-pack info coco/shards               what is in there
  dw-pack verify coco/shards             check every byte on all cores
  dw-pack synth shapes/ --images 600 --val 100 --seed 1 --classes 6
  dw-pack export coco/shards back/       shards back to a COCO folder

Pictures are JPEG or PNG, regular files of at most 512 MiB and 268 million pixels.
Exit codes: 0 done, 2 a mistake in the command, 3 bad data, 5 out of memory or threads";

/// Pack a COCO data set into compressed, memory-mapped, checksummed shards.
#[derive(Debug, Parser)]
#[command(name = "dw-pack", version = concat!(env!("CARGO_PKG_VERSION"), " (", env!("DW_GIT"), ")"), after_help = EXAMPLES,
          args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    pack: PackArgs,
}

#[derive(Debug, Args)]
struct PackArgs {
    /// COCO folder: annotations/instances_SPLIT.json and a folder SPLIT of images
    #[arg(required = true)]
    dir: Option<PathBuf>,
    /// Where the shards go [default: DIR/shards]
    #[arg(short, long)]
    out: Option<PathBuf>,
    /// Pack only this split (may be repeated)
    #[arg(long, value_name = "NAME")]
    split: Vec<String>,
    /// Pixel codec: decoded and zstd-compressed (faster to read), or the JPEG's own bytes (smaller)
    #[arg(long, value_enum, default_value = "zstd")]
    pixels: Codec,
    /// zstd level
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=19))]
    level: i32,
    /// Size of a shard, as 256MiB or 1GB
    #[arg(long, default_value = "256MiB", value_parser = parse_size)]
    shard_size: u64,
    /// Threads, at most four a core [default: all cores]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    jobs: usize,
    /// Store images whose longer side exceeds this many pixels in that size (0: never). Boxes, and
    /// what training and evaluation report, stay in pixels of the original image
    #[arg(long, default_value_t = 0)]
    max_side: u32,
    /// Boxes without area or outside their image
    #[arg(long, value_enum, default_value = "drop")]
    bad_boxes: BadBoxes,
    /// Images that are missing, damaged or of another size than annotated
    #[arg(long, value_enum, default_value = "fail")]
    bad_images: BadImages,
    /// Read images whose file_name is absolute or contains `..`, and links that leave the split's
    /// folder
    #[arg(long)]
    allow_outside: bool,
    /// Keep splits and shards that an earlier run finished from the same annotations with the same
    /// options
    #[arg(long)]
    resume: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What a packed data set holds
    Info {
        /// Folder of shards
        out: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Check every byte, boxes, labels, names and sizes; names the first bad record of each shard
    Verify {
        /// Folder of shards
        out: PathBuf,
    },
    /// Draw a COCO-format data set of shapes
    Synth {
        /// Folder to fill
        dir: PathBuf,
        /// Training pictures
        #[arg(long, default_value_t = 600)]
        images: usize,
        /// Validation pictures
        #[arg(long, default_value_t = 100)]
        val: usize,
        /// Seed: the same seed draws the same pictures
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Number of classes
        #[arg(long, default_value_t = 6)]
        classes: usize,
        /// Longer side of a picture, pixels
        #[arg(long, default_value_t = 256)]
        side: u32,
    },
    /// Write shards back as a COCO folder
    Export {
        /// Folder of shards
        out: PathBuf,
        /// Folder to fill, new or empty
        dir: PathBuf,
    },
    /// Measure how fast records are read, checked and decoded
    Bench {
        /// Folder of shards
        out: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 =
        text[..digits].parse().map_err(|_| format!("expected a size as 256MiB, found `{text}`"))?;
    let unit = match text[digits..].trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1000 * 1000,
        "GB" => 1000 * 1000 * 1000,
        "KiB" | "K" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        other => return Err(format!("unknown unit `{other}`: use KiB, MiB, GiB, kB, MB or GB")),
    };
    match number.checked_mul(unit) {
        Some(n) if n >= 4096 => Ok(n),
        _ => Err(format!("expected at least 4 KiB, found `{text}`")),
    }
}

/// Runs the command.
///
/// # Errors
/// With the exit code of [`Error::exit_code`].
pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        None => pack::pack(&cli.pack),
        Some(Command::Info { out, json }) => show::info(&out, json),
        Some(Command::Verify { out }) => threads::pool(0)?.install(|| show::verify(&out)),
        Some(Command::Synth { dir, images, val, seed, classes, side }) => {
            let bar = progress("draw", (images + val) as u64);
            let options = synth::Options { train: images, val, classes, seed, side };
            threads::pool(0)?.install(|| synth::write(&dir, &options, || bar.inc(1)))?;
            bar.finish_and_clear();
            let dir = shown(dir.display());
            println!("{dir}: {images} + {val} pictures of {classes} classes");
            Ok(())
        }
        Some(Command::Export { out, dir }) => {
            threads::pool(0)?.install(|| show::export(&out, &dir))
        }
        Some(Command::Bench { out, json }) => show::bench(&out, json),
    }
}

/// A bar with images/s and ETA; hidden where stderr is not a terminal.
fn progress(name: &str, images: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{prefix:>12} [{bar:30}] {pos}/{len} {per_sec:.0} ETA {eta}");
    let bar = ProgressBar::new(images).with_prefix(shown(name).to_string());
    match style {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}
