//! `dw-pack DIR`: packs the splits of a data set.

use std::path::PathBuf;

use dw_base::program::{print_message, print_result};
use dw_base::text::shown;
use dw_base::{Error, Result};

use super::args::PackArgs;
use super::progress::progress;
use crate::pack::{self, Packed};
use crate::pixels::Exif;
use crate::sources::{self, Format, Search, Source, listing};
use crate::threads;

/// Packs the selected splits and prints a summary of each.
pub(super) fn pack(a: &PackArgs) -> Result<()> {
    let pool = threads::pool(a.jobs)?;
    let options = options(a);
    if a.exif_boxes.is_some() && a.exif != Some(Exif::Apply) {
        return Err(Error::Usage("--exif-boxes needs --exif apply".into()));
    }
    let (found, out) = pool.install(|| find(a))?;
    for source in found {
        let split = source.split.clone();
        let bar = progress(&split, 0);
        let done = pool.install(|| pack::pack_split(source, &out, &options, &bar));
        bar.finish_and_clear();
        let done = done?;
        for note in notes(&done, a) {
            print_message(&format!("{split}: {note}"));
        }
        let rate = if done.kept {
            "kept from a previous run".to_owned()
        } else {
            format!("{:.0} images/s", done.images as f64 / done.seconds)
        };
        print_result(format_args!(
            "{}: {} images ({} empty), {} boxes, {} crowd, {:.1} MB, {rate}",
            shown(&split),
            done.images,
            done.counts.empty_images,
            done.counts.boxes,
            done.counts.crowd,
            done.bytes as f64 / 1e6
        ))?;
    }
    print_result(format_args!("packed into {}", shown(out.display())))
}

/// The splits to pack, and the output folder.
fn find(a: &PackArgs) -> Result<(Vec<Source>, PathBuf)> {
    let search = Search {
        format: a.format,
        only: a.split.clone(),
        val: a.val,
        difficult: a.difficult,
        bad_images: a.bad_images,
        exif: a.exif.unwrap_or_default(),
        exif_boxes: a.exif_boxes,
        allow_outside: a.allow_outside,
    };
    if let (Some(file), Some(images), Some(out)) = (&a.annotations, &a.images, &a.out) {
        if matches!(a.format, Format::Voc | Format::Yolo) {
            return Err(Error::Usage("--annotations takes a COCO file".into()));
        }
        if a.difficult.is_some() {
            return Err(Error::Usage(
                "--difficult is for Pascal VOC; --annotations takes a COCO file".into(),
            ));
        }
        return Ok((sources::coco::from_file(file, images, &search)?, out.clone()));
    }
    if a.images.is_some() {
        return Err(Error::Usage("--images needs --annotations".into()));
    }
    let Some(dir) = &a.dir else { return Err(Error::Usage("expected a data set folder".into())) };
    let out = a.out.clone().unwrap_or_else(|| dir.join("shards"));
    Ok((sources::find(dir, &search)?, out))
}

/// Options of packing.
fn options(a: &PackArgs) -> pack::Options {
    pack::Options {
        codec: a.pixels,
        level: a.level,
        shard_size: a.shard_size,
        max_side: a.max_side,
        bad_boxes: a.bad_boxes,
        bad_images: a.bad_images,
        exif: a.exif,
        exif_boxes: a.exif_boxes,
        resume: a.resume,
        allow_outside: a.allow_outside,
    }
}

/// Messages about what was left out, changed or is unusual in a split.
fn notes(done: &Packed, a: &PackArgs) -> Vec<String> {
    let mut notes = done.notes.clone();
    notes.extend(done.counts.warnings(a.bad_boxes));
    let counts = &done.image_counts;
    notes.extend(listing::named(&counts.skipped, "left out: "));
    notes.extend(listing::named(&counts.damaged, ""));
    let mut count = |n: usize, text: &str| {
        if n > 0 {
            notes.push(format!("{n} {text}"));
        }
    };
    count(counts.skipped.len(), "images left out");
    count(
        counts.damaged.len(),
        "damaged JPEG files were packed as far as they could be decoded: parts of them are grey or \
         wrong",
    );
    count(
        counts.repaired,
        "JPEG files have faults in the header or no end marker; their pixels are complete",
    );
    count(
        counts.rotated,
        "images have an EXIF rotation, which is ignored as in COCO's tools: boxes must be in \
         coordinates of the stored pixels",
    );
    count(counts.turned, "images were turned as their EXIF orientation says");
    count(counts.alpha, "images have an alpha channel, which is left out");
    count(counts.sixteen_bit, "files with 16 bits per sample were scaled to 8 bits");
    count(
        counts.dark,
        "of these have no value above 4095 (12 bits or less) and are nearly black\n\
         hint: scale their values to 16 bits before packing",
    );
    count(done.reused, "shards kept from an interrupted run");
    notes
}
