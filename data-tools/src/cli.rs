//! What `dw-pack` does with its arguments. Results go to stdout, everything else to stderr.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the command line's own output")]

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::check::BadBoxes;
use crate::error::{Error, Result};
use crate::pack::{self, BadImages};
use crate::pixels::Codec;
use crate::{export, open_all, synth};

const EXAMPLES: &str = "Examples:
  dw-pack coco/                          pack every split of a COCO folder into coco/shards
  dw-pack coco/ -o /fast/shards --split train2017 --split val2017
  dw-pack info coco/shards               what is in there
  dw-pack verify coco/shards             check every byte on all cores
  dw-pack synth shapes/ --images 600 --val 100 --seed 1 --classes 6
  dw-pack export coco/shards back/       shards back to a COCO folder

Exit codes: 0 done, 2 a mistake in the command, 3 bad data";

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
    /// Threads [default: all cores]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    jobs: usize,
    /// Down-sample images whose longer side exceeds this many pixels (0: never)
    #[arg(long, default_value_t = 0)]
    max_side: u32,
    /// Boxes without area or outside their image
    #[arg(long, value_enum, default_value = "drop")]
    bad_boxes: BadBoxes,
    /// Images that are missing, damaged or of another size than annotated
    #[arg(long, value_enum, default_value = "fail")]
    bad_images: BadImages,
    /// Keep splits and shards that an earlier run finished from the same annotations with the same options
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
    /// Check every byte; names the first bad record of each shard
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
        /// Folder to fill
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
        None => pack(&cli.pack),
        Some(Command::Info { out, json }) => info(&out, json),
        Some(Command::Verify { out }) => verify(&out),
        Some(Command::Synth { dir, images, val, seed, classes, side }) => {
            let bar = progress("draw", (images + val) as u64);
            synth::write(
                &dir,
                &synth::Options { train: images, val, classes, seed, side },
                || bar.inc(1),
            )?;
            bar.finish_and_clear();
            println!("{}: {images} + {val} pictures of {classes} classes", dir.display());
            Ok(())
        }
        Some(Command::Export { out, dir }) => {
            for split in open_all(&out)? {
                let bar = progress(&split.meta.split, split.len() as u64);
                let n = export::export_split(&split, &dir, || bar.inc(1))?;
                bar.finish_and_clear();
                println!(
                    "{}: {n} images to {}",
                    split.meta.split,
                    dir.join(&split.meta.split).display()
                );
            }
            Ok(())
        }
        Some(Command::Bench { out, json }) => bench(&out, json),
    }
}

/// A bar with images/s and ETA; hidden where stderr is not a terminal.
fn progress(name: &str, images: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{prefix:>12} [{bar:30}] {pos}/{len} {per_sec:.0} ETA {eta}");
    let bar = ProgressBar::new(images).with_prefix(name.to_owned());
    match style {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

fn pack(a: &PackArgs) -> Result<()> {
    let Some(dir) = &a.dir else { return Err(Error::Usage("expected a COCO folder".into())) };
    let out = a.out.clone().unwrap_or_else(|| dir.join("shards"));
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(a.jobs)
        .build()
        .map_err(|e| Error::Usage(format!("--jobs: {e}")))?;
    let options = pack::Options {
        codec: a.pixels,
        level: a.level,
        shard_size: a.shard_size,
        max_side: a.max_side,
        bad_boxes: a.bad_boxes,
        bad_images: a.bad_images,
        resume: a.resume,
    };
    for split in pack::find_splits(dir, &a.split)? {
        let bar = progress(&split, 0);
        let done = pool.install(|| pack::pack_split(dir, &split, &out, &options, &bar));
        bar.finish_and_clear();
        let done = done?;
        for w in done.counts.warnings(a.bad_boxes) {
            eprintln!("{split}: {w}");
        }
        for s in done.skipped.iter().take(5) {
            eprintln!("{split}: left out: {s}");
        }
        if !done.skipped.is_empty() {
            eprintln!("{split}: {} images left out", done.skipped.len());
        }
        if done.rotated > 0 {
            eprintln!(
                "{split}: {} images ask for a rotation (EXIF), which is ignored, as COCO's tools do: boxes belong to the stored pixels",
                done.rotated
            );
        }
        if done.reused > 0 {
            eprintln!("{split}: {} shards kept from an interrupted run", done.reused);
        }
        let how = if done.kept {
            "kept from an earlier run".to_owned()
        } else {
            format!("{:.0} images/s", done.images as f64 / done.seconds)
        };
        println!(
            "{split}: {} images ({} empty), {} boxes, {} crowd, {:.1} MB, {how}",
            done.images,
            done.counts.empty_images,
            done.counts.boxes,
            done.counts.crowd,
            done.bytes as f64 / 1e6
        );
    }
    println!("packed into {}", out.display());
    Ok(())
}

fn info(out: &Path, as_json: bool) -> Result<()> {
    let splits = open_all(out)?;
    let mut rows = serde_json::Map::new();
    for s in &splits {
        let (boxes, crowd) =
            s.entries().fold((0u64, 0u64), |(b, c), e| (b + e.boxes as u64, c + e.crowd as u64));
        let bytes: usize = s.shards().map(|(_, n)| n).sum();
        let row = json!({"images": s.len(), "boxes": boxes, "crowd": crowd, "shards": s.shards().count(), "bytes": bytes});
        rows.insert(s.meta.split.clone(), row);
    }
    let categories: Vec<_> = splits.first().map_or(vec![], |s| {
        s.categories().iter().map(|c| json!({"id": c.id, "name": c.name})).collect()
    });
    let pixels = splits.first().map_or("", |s| s.codec.name());
    if as_json {
        println!(
            "{}",
            json!({"version": crate::format::VERSION, "pixels": pixels, "categories": categories, "splits": rows})
        );
        return Ok(());
    }
    println!(
        "{}: format {}, pixels {pixels}, {} categories",
        out.display(),
        crate::format::VERSION,
        categories.len()
    );
    for (name, row) in &rows {
        println!(
            "  {name}: {} images, {} boxes, {} crowd, {} shards, {:.1} MB",
            row["images"],
            row["boxes"],
            row["crowd"],
            row["shards"],
            row["bytes"].as_f64().unwrap_or(0.0) / 1e6
        );
    }
    Ok(())
}

fn verify(out: &Path) -> Result<()> {
    let mut bad = vec![];
    for name in crate::reader::split_names(out)? {
        let split = match crate::Split::open(out, &name) {
            Ok(split) => split,
            Err(e) => {
                bad.push(e.to_string());
                continue;
            }
        };
        let bar = progress(&name, split.len() as u64);
        let (start, bytes) = (Instant::now(), split.shards().map(|(_, n)| n).sum::<usize>());
        let found = split.verify(|| bar.inc(1));
        bar.finish_and_clear();
        if found.is_empty() {
            let rate = bytes as f64 / 1e9 / start.elapsed().as_secs_f64().max(1e-9);
            println!(
                "{name}: {} images, {} shards, all whole ({rate:.2} GB/s)",
                split.len(),
                split.shards().count()
            );
        }
        bad.extend(found.iter().map(ToString::to_string));
    }
    if bad.is_empty() { Ok(()) } else { Err(Error::Findings(bad.join("\n"))) }
}

fn bench(out: &Path, as_json: bool) -> Result<()> {
    for split in open_all(out)? {
        let mut times = vec![];
        let mut pixels = 0usize;
        for _ in 0..3 {
            let start = Instant::now();
            pixels = 0;
            for i in 0..split.len().min(512) {
                pixels += split.record(i)?.decode()?.data.len() / 3;
            }
            times.push(start.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        let images = split.len().min(512);
        let (rate, mpx) = (images as f64 / times[1], pixels as f64 / 1e6 / times[1]);
        let bytes = split.shards().map(|(_, n)| n).sum::<usize>() / split.len().max(1);
        if as_json {
            let row = json!({"split": split.meta.split, "pixels": split.codec.name(), "images_per_s_per_core": rate, "megapixels_per_s": mpx, "bytes_per_image": bytes});
            println!("{row}");
        } else {
            println!(
                "{}: {rate:.0} images/s on one core ({mpx:.0} Mpx/s), {bytes} bytes an image, codec {}",
                split.meta.split,
                split.codec.name()
            );
        }
    }
    Ok(())
}
