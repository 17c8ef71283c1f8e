//! A COCO folder to shards: images are read, checked and encoded on all cores, written in file order.

use std::path::{Path, PathBuf};
use std::time::Instant;

use fs_err as fs;
use indicatif::ProgressBar;
use rayon::prelude::*;

use crate::check::{BadBoxes, Counts, boxes_by_image};
use crate::coco::{self, Coco, Image};
use crate::error::{Error, Result};
use crate::format::{Annotations, Entry, GtBox, Meta, encode_record};
use crate::pixels::{self, Codec, Layout, Rgb, is_jpeg};
use crate::reader::Split;
use crate::writer::SplitWriter;

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
}

/// What one split became.
#[derive(Debug)]
pub struct Packed {
    /// Images written.
    pub images: usize,
    /// What was counted.
    pub counts: Counts,
    /// Images left out, with the reason.
    pub skipped: Vec<String>,
    /// Bytes of all shards.
    pub bytes: u64,
    /// Seconds it took.
    pub seconds: f64,
    /// Images whose EXIF data ask for a rotation, which is ignored.
    pub rotated: usize,
    /// Shards that an interrupted run had finished.
    pub reused: usize,
    /// An earlier run had finished it.
    pub kept: bool,
}

/// Beginnings of annotation files: with boxes, and lists of images alone (COCO's test sets), which are packed when named.
const FILES: [&str; 2] = ["instances_", coco::IMAGES_ALONE];

/// The annotation file of a split.
fn annotation_file(dir: &Path, split: &str) -> PathBuf {
    let path = |start: &str| dir.join("annotations").join(format!("{start}{split}.json"));
    FILES.map(path).into_iter().find(|p| p.is_file()).unwrap_or_else(|| path(FILES[0]))
}

/// The splits of a COCO folder: every `annotations/instances_NAME.json`, or the named ones (also `image_info_NAME.json`).
///
/// # Errors
/// No such folder, no annotation file, a name that has none.
pub fn find_splits(dir: &Path, only: &[String]) -> Result<Vec<String>> {
    let annotations = dir.join("annotations");
    if !dir.is_dir() {
        return Err(Error::Usage(format!(
            "cannot pack {}: the folder does not exist",
            dir.display()
        )));
    }
    if !annotations.is_dir() {
        let text = "expected a COCO folder with annotations/instances_SPLIT.json and a folder SPLIT of images";
        return Err(Error::Usage(format!(
            "cannot pack {}: it has no folder `annotations`\nhint: {text}",
            dir.display()
        )));
    }
    let files = fs::read_dir(&annotations).map_err(Error::io("cannot list", &annotations))?;
    let files: Vec<String> =
        files.flatten().filter_map(|f| f.file_name().into_string().ok()).collect();
    let splits = |start: &str| {
        files
            .iter()
            .filter_map(|f| Some(f.strip_prefix(start)?.strip_suffix(".json")?.to_owned()))
            .collect::<Vec<_>>()
    };
    let [mut found, images_alone] = FILES.map(splits);
    found.sort();
    if found.is_empty() && only.is_empty() {
        return Err(Error::Usage(format!(
            "cannot pack {}: found no instances_SPLIT.json",
            annotations.display()
        )));
    }
    for name in only {
        if !found.contains(name) && !images_alone.contains(name) {
            let all = [found, images_alone].concat();
            return Err(Error::Usage(format!(
                "no split `{name}` in {}: it holds {}",
                annotations.display(),
                all.join(", ")
            )));
        }
    }
    Ok(if only.is_empty() { found } else { only.to_vec() })
}

/// Image folder of a split: `DIR/SPLIT`, or that of a shorter name (`val2017` for `val2017_crowd`, `test2017` for
/// `test-dev2017`).
fn image_dir(dir: &Path, split: &str) -> Result<PathBuf> {
    let whole = dir.join(split.replace("-dev", ""));
    if !dir.join(split).is_dir() && whole.is_dir() {
        return Ok(whole);
    }
    let mut name = split;
    loop {
        let path = dir.join(name);
        if path.is_dir() {
            return Ok(path);
        }
        let Some(at) = name.rfind('_') else {
            let path = dir.join(split);
            return Err(Error::Usage(format!(
                "cannot pack split `{split}`: expected its images in {}, which does not exist",
                path.display()
            )));
        };
        name = &name[..at];
    }
}

/// Packs one split of `dir` into `out`.
///
/// # Errors
/// Anything wrong with the annotations, and images under the policies; what was packed before stays as it was.
pub fn pack_split(
    dir: &Path,
    split: &str,
    out: &Path,
    options: &Options,
    bar: &ProgressBar,
) -> Result<Packed> {
    let start = Instant::now();
    let json = annotation_file(dir, split);
    let source = fingerprint(&json, options)?;
    if options.resume
        && let Ok(done) = Split::open(out, split)
        && done.meta.source == source
    {
        // Killed after its index was in place: all is there but the cleaning.
        SplitWriter::discard(out, split)?;
        return Ok(kept(&done, start));
    }
    let images_dir = image_dir(dir, split)?;
    let coco = coco::read(&json)?;
    let (boxes, mut counts) = boxes_by_image(&coco, &json, options.bad_boxes)?;
    fs::create_dir_all(out).map_err(Error::io("cannot create folder", out))?;
    let mut writer = SplitWriter::new(out, split, &source, options.shard_size, options.resume)?;
    let reused = writer.finished();
    bar.set_length(coco.images.len() as u64);
    bar.set_position(writer.next_image as u64);
    let chunk = rayon::current_num_threads() * 8;
    for at in (writer.next_image..coco.images.len()).step_by(chunk) {
        let range = at..(at + chunk).min(coco.images.len());
        let encoded: Vec<_> = range
            .clone()
            .into_par_iter()
            .map(|i| {
                let record = encode_image(&images_dir, &coco.images[i], &boxes[i], options);
                bar.inc(1);
                record
            })
            .collect();
        let mut failed = vec![];
        for (i, record) in range.zip(encoded) {
            match record {
                // Behind a bad image nothing is written: a shard that is finished must not lack one.
                Ok(_) if !failed.is_empty() => {}
                Ok(encoded) => {
                    writer.tally.rotated += usize::from(encoded.rotated);
                    writer.push(i, &encoded.record, encoded.entry)?;
                }
                Err(e) if options.bad_images == BadImages::Fail => failed.push(e),
                Err(e) => writer.tally.skipped.push(e),
            }
        }
        if !failed.is_empty() {
            return Err(bad_images(&json, &failed, writer.finished(), &coco, &images_dir));
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
    Ok(Packed {
        images,
        counts,
        skipped: tally.skipped,
        bytes,
        seconds,
        rotated: tally.rotated,
        reused,
        kept: false,
    })
}

fn kept(done: &Split, start: Instant) -> Packed {
    let mut counts = Counts::default();
    for e in done.entries() {
        counts.add(&e);
    }
    let bytes = done.shards().map(|(_, n)| n as u64).sum();
    Packed {
        images: done.len(),
        counts,
        skipped: vec![],
        bytes,
        seconds: start.elapsed().as_secs_f64(),
        rotated: 0,
        reused: 0,
        kept: true,
    }
}

/// Everything that decides what a pack holds, short of the images' own bytes.
fn fingerprint(json: &Path, o: &Options) -> Result<String> {
    let (crc, length) = checksum(json)?;
    Ok(format!(
        "json {crc:08x} {length}; pixels {} level {} shard-size {} max-side {} bad-boxes {:?} bad-images {:?}",
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
    let mut file = fs::File::open(path).map_err(Error::io("cannot open", path))?;
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

fn bad_images(json: &Path, failed: &[String], finished: usize, coco: &Coco, dir: &Path) -> Error {
    const SHOWN: usize = 5;
    let missing = coco.images.iter().filter(|i| !dir.join(&i.file_name).is_file()).count();
    let mut text = failed.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("\n");
    if missing > 1 {
        text = format!(
            "{text}\n{missing} of the {} images listed in {} are missing",
            coco.images.len(),
            json.display()
        );
    }
    text += "\nhint: --bad-images skip leaves such images out and counts them";
    if finished > 0 {
        let kept = format!("; {finished} finished shards are kept: --resume goes on behind them");
        text.push_str(&kept);
    }
    Error::Findings(text)
}

/// An image as it goes into a shard.
struct Encoded {
    record: Vec<u8>,
    entry: Entry,
    /// Its EXIF data ask for a rotation.
    rotated: bool,
}

fn encode_image(
    dir: &Path,
    image: &Image,
    boxes: &[GtBox],
    o: &Options,
) -> std::result::Result<Encoded, String> {
    let path = dir.join(&image.file_name);
    let bytes = std::fs::read(&path)
        .map_err(|e| format!("{}: image {} cannot be read: {e}", path.display(), image.id))?;
    let undecodable =
        |e: String| format!("{}: image {} cannot be decoded: {e}", path.display(), image.id);
    let (width, height) = pixels::file_size(&bytes).map_err(undecodable)?;
    if (width, height) != (image.width as usize, image.height as usize) {
        return Err(format!(
            "{}: image {} is {width} x {height} pixels, expected {} x {} (`width`, `height` in the annotations)",
            path.display(),
            image.id,
            image.width,
            image.height
        ));
    }
    let rotated = is_jpeg(&bytes) && pixels::jpeg::is_rotated(&bytes);
    let mut boxes = boxes.to_vec();
    let too_large = o.max_side > 0 && image.width.max(image.height) > o.max_side;
    let (layout, size, pixels) = if o.codec == Codec::Jpeg && is_jpeg(&bytes) && !too_large {
        pixels::jpeg::check(&bytes).map_err(undecodable)?;
        (Layout::Jpeg, (width, height), bytes)
    } else {
        let mut rgb = pixels::decode_file(&bytes).map_err(undecodable)?;
        let mut source = &bytes[..];
        if too_large {
            rgb = shrink(&rgb, o.max_side, &mut boxes)?;
            source = &[];
        }
        let (layout, pixels) = pixels::encode_zstd(source, &rgb, o.level).map_err(undecodable)?;
        (layout, (rgb.width, rgb.height), pixels)
    };
    let crowd = boxes.iter().filter(|b| b.crowd).count() as u32;
    let mut entry = Entry {
        offset: 0,
        length: 0,
        image_id: image.id,
        shard: 0,
        width: size.0 as u32,
        height: size.1 as u32,
        boxes: boxes.len() as u32 - crowd,
        crowd,
        crc: 0,
    };
    let annotations = Annotations { file_name: image.file_name.clone(), boxes };
    let (record, crc) = encode_record(image.id, layout.code(), &annotations, &pixels, o.level)
        .map_err(|e| e.to_string())?;
    entry.crc = crc;
    Ok(Encoded { record, entry, rotated })
}

/// Down-samples to `max_side` (triangle filter) and scales the boxes with it.
fn shrink(rgb: &Rgb, max_side: u32, boxes: &mut [GtBox]) -> std::result::Result<Rgb, String> {
    let scale = max_side as f64 / rgb.width.max(rgb.height) as f64;
    let (w, h) =
        ((rgb.width as f64 * scale).round().max(1.0), (rgb.height as f64 * scale).round().max(1.0));
    let source = image::RgbImage::from_raw(rgb.width as u32, rgb.height as u32, rgb.data.clone())
        .ok_or("image of odd size")?;
    let small =
        image::imageops::resize(&source, w as u32, h as u32, image::imageops::FilterType::Triangle);
    let (sx, sy) = (w / rgb.width as f64, h / rgb.height as f64);
    for b in boxes {
        b.bbox = [b.bbox[0] * sx, b.bbox[1] * sy, b.bbox[2] * sx, b.bbox[3] * sy];
        b.area *= sx * sy;
    }
    Ok(Rgb { width: w as usize, height: h as usize, data: small.into_raw() })
}
