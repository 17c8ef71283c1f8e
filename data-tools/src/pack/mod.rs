//! Packs the splits of a data set: images are read, checked and encoded on all cores and written in
//! the order of the annotations.

use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use dw_base::text::shown;
use dw_base::{Error, Result};
use indicatif::ProgressBar;
use rayon::prelude::*;
use std::fs;

use crate::boxes::{Counts, boxes_by_image};
use crate::coco::Coco;
use crate::format::{GtBox, Meta};
use crate::input::BadImages;
use crate::reader::Split;
use crate::sources::Source;
use crate::writer::{ImageCounts, SplitWriter};

mod options;
mod source;

pub use options::Options;
use source::{ImageFolder, Unusable};

/// Highest value of 12-bit samples. A 16-bit PNG without higher values is nearly black after
/// scaling.
const MAX_12_BIT: u16 = 4095;

/// Result of packing one split.
#[derive(Debug)]
pub struct Packed {
    /// Number of images written.
    pub images: usize,
    /// Counts of boxes.
    pub counts: Counts,
    /// Counts of images with special properties.
    pub image_counts: ImageCounts,
    /// Messages about how the annotations were interpreted.
    pub notes: Vec<String>,
    /// Total size of the shards in bytes.
    pub bytes: u64,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Number of shards kept from an interrupted run.
    pub reused: usize,
    /// Whether a previous run had already packed the split.
    pub kept: bool,
}

/// Packs one split into `out`; `bar` shows the number of images done.
///
/// # Errors
/// Invalid annotations, boxes or images that the policies reject, images outside their folder
/// without `allow_outside`, failed writes. The previous pack of the split stays unchanged.
pub fn pack_split(
    source: Source,
    out: &Path,
    options: &Options,
    bar: &ProgressBar,
) -> Result<Packed> {
    let start = Instant::now();
    let (split, mut notes, json) =
        (source.split.clone(), source.notes.clone(), source.annotations.clone());
    let checksum = source.checksum()?;
    let fingerprint = options::fingerprint(&checksum, options);
    let images_dir = source.images_dir.clone();
    if options.resume
        && let Ok(done) = Split::open(out, &split)
        && done.meta.source == fingerprint
    {
        // The previous run may have been killed between placing the index and cleaning up.
        SplitWriter::discard(out, &split)?;
        if options.bad_images == BadImages::Skip {
            notes.extend(skipped(source, &done)?);
        }
        return Ok(already_packed(&done, notes, start));
    }
    let coco = source.read()?;
    source::check_names(&coco, &json, options.allow_outside)?;
    let (boxes, mut counts) = boxes_by_image(&coco, &json, options.bad_boxes)?;
    let folder = ImageFolder::new(&images_dir, options.allow_outside)?;
    fs::create_dir_all(out).map_err(Error::io("cannot create folder", out))?;
    let mut writer = start_writer(out, &split, &checksum, options, &mut notes)?;
    let reused = writer.num_finished();
    bar.set_length(coco.images.len() as u64);
    bar.set_position(writer.next_image as u64);
    let chunk = rayon::current_num_threads() * 8;
    for at in (writer.next_image..coco.images.len()).step_by(chunk) {
        let range = at..(at + chunk).min(coco.images.len());
        let failed = pack_chunk(range, &coco, &boxes, &folder, options, &mut writer, bar)?;
        if !failed.is_empty() {
            let finished = writer.num_finished();
            let policy = options.bad_images;
            return Err(bad_images(&json, &failed, finished, &coco, &folder, policy));
        }
    }
    let (images, image_counts) = (writer.entries().len(), writer.image_counts.clone());
    let mut written = Counts::default();
    writer.entries().iter().for_each(|e| written.add(e));
    if images == 0 {
        return Err(Error::data(&json, "images", "expected at least one usable image, found none"));
    }
    (counts.boxes, counts.crowd, counts.empty_images) =
        (written.boxes, written.crowd, written.empty_images);
    let meta = Meta { split, categories: coco.categories, source: fingerprint };
    let bytes = writer.finish(&meta, options.codec.code(), coco.images.len())?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(Packed { images, counts, image_counts, notes, bytes, seconds, reused, kept: false })
}

/// Creates the writer of a split. With `--resume` it continues after the shards that an interrupted
/// run has finished.
fn start_writer(
    out: &Path,
    split: &str,
    checksum: &str,
    options: &Options,
    notes: &mut Vec<String>,
) -> Result<SplitWriter> {
    let fingerprint = options::fingerprint(checksum, options);
    let mut writer =
        SplitWriter::new(out, split, &fingerprint, options.shard_size, options.resume)?;
    if options.bad_images != BadImages::Fail {
        // Shards finished under `fail` have no bad image: they are the same under any policy.
        let strict = Options { bad_images: BadImages::Fail, ..options.clone() };
        writer.load_finished(&options::fingerprint(checksum, &strict));
    }
    writer.load_finished(&fingerprint);
    let unused = writer.unused();
    if unused > 0 {
        notes.push(format!(
            "{unused} shards of an interrupted run are not used: they are damaged, or of other \
             options or annotations"
        ));
    }
    Ok(writer)
}

/// Encodes the images of `range` on all threads and appends them in order. Returns the problems of
/// unusable images, except under [`BadImages::Skip`].
fn pack_chunk(
    range: Range<usize>,
    coco: &Coco,
    boxes: &[Vec<GtBox>],
    folder: &ImageFolder,
    options: &Options,
    writer: &mut SplitWriter,
    bar: &ProgressBar,
) -> Result<Vec<String>> {
    let encode = |i: usize| {
        let record = folder.encode(&coco.images[i], &boxes[i], options);
        bar.inc(1);
        record
    };
    let encoded: Vec<_> = range.clone().into_par_iter().map(encode).collect();
    let mut failed = vec![];
    for (i, record) in range.zip(encoded) {
        match record {
            // Nothing is written after an unusable image, because a finished shard must not lack
            // one.
            Ok(_) if !failed.is_empty() => {}
            Ok(encoded) => {
                // Before the counts are updated: this may finish the previous shard, whose saved
                // counts must not include this image.
                writer.push(i, &encoded.record, encoded.entry)?;
                let is_dark = |h: u16| (1..=MAX_12_BIT).contains(&h);
                let counts = &mut writer.image_counts;
                counts.damaged.extend(encoded.damage);
                counts.repaired += usize::from(encoded.repaired);
                counts.rotated += usize::from(encoded.rotated);
                counts.turned += usize::from(encoded.turned);
                counts.alpha += usize::from(encoded.alpha);
                counts.sixteen_bit += usize::from(encoded.max_16_bit.is_some());
                counts.dark += usize::from(encoded.max_16_bit.is_some_and(is_dark));
            }
            Err(Unusable::Always(e)) => return Err(e),
            Err(Unusable::Bad(e)) if options.bad_images == BadImages::Skip => {
                writer.image_counts.skipped.push(e);
            }
            Err(Unusable::Bad(e)) => failed.push(e),
        }
    }
    Ok(failed)
}

/// A message about the images that a previous run has left out of a pack.
fn skipped(source: Source, done: &Split) -> Result<Option<String>> {
    let count = source.read()?.images.len().saturating_sub(done.len());
    let text = "images were left out by `--bad-images skip`; without `--resume` they are named";
    Ok((count > 0).then(|| format!("{count} {text}")))
}

/// The result for a split that a previous run has packed.
fn already_packed(done: &Split, notes: Vec<String>, start: Instant) -> Packed {
    let mut counts = Counts::default();
    for e in done.entries() {
        counts.add(&e);
    }
    let bytes = done.shards().map(|(_, n)| n as u64).sum();
    let (images, seconds) = (done.len(), start.elapsed().as_secs_f64());
    let image_counts = ImageCounts::default();
    Packed { images, counts, image_counts, notes, bytes, seconds, reused: 0, kept: true }
}

/// The error for unusable images: the first few of them, and how many images are missing.
fn bad_images(
    json: &Path,
    failed: &[String],
    finished: usize,
    coco: &Coco,
    folder: &ImageFolder,
    policy: BadImages,
) -> Error {
    const SHOWN: usize = 5;
    let missing = coco.images.iter().filter(|i| !folder.contains(i)).count();
    let mut text = failed.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("\n");
    if missing > 1 {
        text = format!(
            "{text}\n{missing} of the {} images listed in {} are missing",
            coco.images.len(),
            shown(json.display())
        );
    }
    let more = failed.len().saturating_sub(SHOWN);
    if more > 0 {
        text = format!("{text}\nand {more} more of the images read so far");
    }
    text += "\nhint: `--bad-images skip` leaves such images out and names them";
    if policy == BadImages::Fail {
        text += "; `keep` packs damaged JPEG files as far as they can be decoded, as OpenCV reads \
                 them";
    }
    if finished > 0 {
        let kept =
            format!("; {finished} finished shards are kept: `--resume` continues after them");
        text.push_str(&kept);
    }
    Error::Inconsistent(text)
}
