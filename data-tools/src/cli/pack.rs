//! `dw-pack DIR`: packs the splits of a COCO folder.

use dw_base::program::print_message;
use dw_base::text::shown;
use dw_base::{Error, Result};

use super::args::PackArgs;
use super::progress::progress;
use crate::pack::{self, Packed};
use crate::threads;

/// Packs the selected splits and prints a summary of each.
pub(super) fn pack(a: &PackArgs) -> Result<()> {
    let Some(dir) = &a.dir else { return Err(Error::Usage("expected a COCO folder".into())) };
    let out = a.out.clone().unwrap_or_else(|| dir.join("shards"));
    let pool = threads::pool(a.jobs)?;
    let options = pack::Options {
        codec: a.pixels,
        level: a.level,
        shard_size: a.shard_size,
        max_side: a.max_side,
        bad_boxes: a.bad_boxes,
        bad_images: a.bad_images,
        resume: a.resume,
        allow_outside: a.allow_outside,
    };
    for split in pack::find_splits(dir, &a.split)? {
        let bar = progress(&split, 0);
        let done = pool.install(|| pack::pack_split(dir, &split, &out, &options, &bar));
        bar.finish_and_clear();
        let done = done?;
        for note in notes(&done, a, &split) {
            print_message(&format!("{split}: {note}"));
        }
        let rate = if done.kept {
            "kept from a previous run".to_owned()
        } else {
            format!("{:.0} images/s", done.images as f64 / done.seconds)
        };
        println!(
            "{}: {} images ({} empty), {} boxes, {} crowd, {:.1} MB, {rate}",
            shown(&split),
            done.images,
            done.counts.empty_images,
            done.counts.boxes,
            done.counts.crowd,
            done.bytes as f64 / 1e6
        );
    }
    println!("packed into {}", shown(out.display()));
    Ok(())
}

/// Messages about what was left out, changed or is unusual in a split.
fn notes(done: &Packed, a: &PackArgs, split: &str) -> Vec<String> {
    let mut notes = done.counts.warnings(a.bad_boxes);
    let counts = &done.image_counts;
    if done.images_dir.file_name().is_none_or(|n| n != split) {
        notes.push(format!("images are read from {}", shown(done.images_dir.display())));
    }
    notes.extend(counts.skipped.iter().take(5).map(|s| format!("left out: {s}")));
    let mut count = |n: usize, text: &str| {
        if n > 0 {
            notes.push(format!("{n} {text}"));
        }
    };
    count(counts.skipped.len(), "images left out");
    count(
        counts.rotated,
        "images have an EXIF rotation, which is ignored as in COCO's tools: boxes must be in \
         coordinates of the stored pixels",
    );
    count(counts.sixteen_bit, "PNG files with 16 bits per sample were scaled to 8 bits");
    count(
        counts.dark,
        "of these have no value above 4095 (12 bits or less) and are nearly black\n\
         hint: scale their values to 16 bits before packing",
    );
    count(done.reused, "shards kept from an interrupted run");
    notes
}
