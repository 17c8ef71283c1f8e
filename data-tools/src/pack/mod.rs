//! A COCO folder to shards: images are read, checked and encoded on all cores, written in file
//! order.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use dw_base::text::shown;
use fs_err as fs;
use indicatif::ProgressBar;
use rayon::prelude::*;

use crate::check::{BadBoxes, Counts, boxes_by_image};
use crate::coco::{self, Coco};
use crate::error::{Error, Result};
use crate::format::{GtBox, Meta};
use crate::pixels::Codec;
use crate::reader::Split;
use crate::writer::{SplitWriter, Tally};

mod picture;
mod splits;

use picture::{Source, Unusable};
pub use splits::find_splits;

/// What to do with images that are missing, damaged or of another size than the annotations say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BadImages {
    /// End with an error that names them.
    Fail,
    /// Leave them out and count them.
    Skip,
}

/// How to pack.
#[derive(Debug, Clone)]
pub struct Options {
    /// Pixel codec.
    pub codec: Codec,
    /// zstd level.
    pub level: i32,
    /// Bytes of a shard, about.
    pub shard_size: u64,
    /// Longest side in pixels; 0 keeps every image as it is.
    pub max_side: u32,
    /// Policy for boxes.
    pub bad_boxes: BadBoxes,
    /// Policy for images.
    pub bad_images: BadImages,
    /// Keep splits that an earlier run finished from the same input.
    pub resume: bool,
    /// Read images from outside the split's folder, where `file_name` or a link says so.
    pub allow_outside: bool,
}

/// A 16-bit PNG whose highest sample is not above this holds 12 bits at most.
const DARK: u16 = 4095;

/// What one split became.
#[derive(Debug)]
pub struct Packed {
    /// Images written.
    pub images: usize,
    /// What was counted.
    pub counts: Counts,
    /// What was found out about images.
    pub tally: Tally,
    /// Where they were found.
    pub images_dir: PathBuf,
    /// Bytes of all shards.
    pub bytes: u64,
    /// Seconds it took.
    pub seconds: f64,
    /// Shards that an interrupted run had finished.
    pub reused: usize,
    /// An earlier run had finished it.
    pub kept: bool,
}

/// Packs one split of `dir` into `out`.
///
/// # Errors
/// Anything wrong with the annotations, images under the policies, images outside their folder
/// without `allow_outside`; what was packed before stays as it was.
pub fn pack_split(
    dir: &Path,
    split: &str,
    out: &Path,
    options: &Options,
    bar: &ProgressBar,
) -> Result<Packed> {
    let start = Instant::now();
    let json = splits::annotation_file(dir, split);
    let source = fingerprint(&json, options)?;
    let images_dir = splits::image_dir(dir, split)?;
    if options.resume
        && let Ok(done) = Split::open(out, split)
        && done.meta.source == source
    {
        // Killed after its index was in place: all is there but the cleaning.
        SplitWriter::discard(out, split)?;
        return Ok(kept(&done, images_dir, start));
    }
    let coco = coco::read(&json)?;
    picture::check_names(&coco, &json, options.allow_outside)?;
    let (boxes, mut counts) = boxes_by_image(&coco, &json, options.bad_boxes)?;
    let pictures = Source::new(images_dir.clone(), options.allow_outside)?;
    fs::create_dir_all(out).map_err(Error::io("cannot create folder", out))?;
    let mut writer = SplitWriter::new(out, split, &source, options.shard_size, options.resume)?;
    let reused = writer.finished();
    bar.set_length(coco.images.len() as u64);
    bar.set_position(writer.next_image as u64);
    let chunk = rayon::current_num_threads() * 8;
    for at in (writer.next_image..coco.images.len()).step_by(chunk) {
        let range = at..(at + chunk).min(coco.images.len());
        let failed = pack_chunk(range, &coco, &boxes, &pictures, options, &mut writer, bar)?;
        if !failed.is_empty() {
            return Err(bad_images(&json, &failed, writer.finished(), &coco, &pictures));
        }
    }
    let (images, tally) = (writer.entries().len(), writer.tally.clone());
    let mut written = Counts::default();
    writer.entries().iter().for_each(|e| written.add(e));
    if images == 0 {
        return Err(Error::data(&json, "images", "none of the images could be used"));
    }
    (counts.boxes, counts.crowd, counts.empty_images) =
        (written.boxes, written.crowd, written.empty_images);
    let meta = Meta { split: split.to_owned(), categories: coco.categories, source };
    let bytes = writer.finish(&meta, options.codec.code(), coco.images.len())?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(Packed { images, counts, tally, images_dir, bytes, seconds, reused, kept: false })
}

/// Encodes the images of `range` on all threads and appends them in order. Returns what is wrong
/// with those that [`BadImages::Fail`] does not let pass.
fn pack_chunk(
    range: Range<usize>,
    coco: &Coco,
    boxes: &[Vec<GtBox>],
    pictures: &Source,
    options: &Options,
    writer: &mut SplitWriter,
    bar: &ProgressBar,
) -> Result<Vec<String>> {
    let encode = |i: usize| {
        let record = pictures.encode(&coco.images[i], &boxes[i], options);
        bar.inc(1);
        record
    };
    let encoded: Vec<_> = range.clone().into_par_iter().map(encode).collect();
    let mut failed = vec![];
    for (i, record) in range.zip(encoded) {
        match record {
            // Behind a bad image nothing is written: a shard that is finished must not lack one.
            Ok(_) if !failed.is_empty() => {}
            Ok(encoded) => {
                writer.tally.rotated += usize::from(encoded.rotated);
                writer.tally.deep += usize::from(encoded.highest.is_some());
                writer.tally.dark +=
                    usize::from(encoded.highest.is_some_and(|h| (1..=DARK).contains(&h)));
                writer.push(i, &encoded.record, encoded.entry)?;
            }
            Err(Unusable::Refused(e)) => return Err(e),
            Err(Unusable::Bad(e)) if options.bad_images == BadImages::Fail => failed.push(e),
            Err(Unusable::Bad(e)) => writer.tally.skipped.push(e),
        }
    }
    Ok(failed)
}

fn kept(done: &Split, images_dir: PathBuf, start: Instant) -> Packed {
    let mut counts = Counts::default();
    for e in done.entries() {
        counts.add(&e);
    }
    let bytes = done.shards().map(|(_, n)| n as u64).sum();
    let (images, seconds) = (done.len(), start.elapsed().as_secs_f64());
    let tally = Tally::default();
    Packed { images, counts, tally, images_dir, bytes, seconds, reused: 0, kept: true }
}

/// Everything that decides what a pack holds, short of the images' own bytes.
fn fingerprint(json: &Path, o: &Options) -> Result<String> {
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

/// CRC-32C and length of a file, read piece by piece.
fn checksum(path: &Path) -> Result<(u32, u64)> {
    use std::io::Read;
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

fn bad_images(
    json: &Path,
    failed: &[String],
    finished: usize,
    coco: &Coco,
    pictures: &Source,
) -> Error {
    const SHOWN: usize = 5;
    let missing = coco.images.iter().filter(|i| !pictures.has(i)).count();
    let mut text = failed.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("\n");
    if missing > 1 {
        text = format!(
            "{text}\n{missing} of the {} images listed in {} are missing",
            coco.images.len(),
            shown(json.display())
        );
    }
    text += "\nhint: --bad-images skip leaves such images out and counts them";
    if finished > 0 {
        let kept = format!("; {finished} finished shards are kept: --resume goes on behind them");
        text.push_str(&kept);
    }
    Error::Findings(text)
}
