//! `dw-pack DIR`.

use dw_base::text::{lines, shown};

use super::{PackArgs, progress};
use crate::error::{Error, Result};
use crate::pack::{self, Packed};
use crate::threads;

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
            eprintln!("{}", lines(format!("{split}: {note}")));
        }
        let how = if done.kept {
            "kept from an earlier run".to_owned()
        } else {
            format!("{:.0} images/s", done.images as f64 / done.seconds)
        };
        println!(
            "{}: {} images ({} empty), {} boxes, {} crowd, {:.1} MB, {how}",
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

/// What was left out, changed or unusual in a split.
fn notes(done: &Packed, a: &PackArgs, split: &str) -> Vec<String> {
    let mut notes = done.counts.warnings(a.bad_boxes);
    let tally = &done.tally;
    if done.images_dir.file_name().is_none_or(|n| n != split) {
        notes.push(format!("images are those in {}", shown(done.images_dir.display())));
    }
    notes.extend(tally.skipped.iter().take(5).map(|s| format!("left out: {s}")));
    let mut count = |n: usize, text: &str| {
        if n > 0 {
            notes.push(format!("{n} {text}"));
        }
    };
    count(tally.skipped.len(), "images left out");
    count(
        tally.rotated,
        "images ask for a rotation (EXIF), which is ignored, as COCO's tools do: boxes belong to \
         the stored pixels",
    );
    count(tally.deep, "PNG files have 16 bits a sample, which were scaled to 8");
    count(
        tally.dark,
        "of these hold no value above 4095 (12 bits or less) and come out nearly black\n\
         hint: scale their values to 16 bits before packing",
    );
    count(done.reused, "shards kept from an interrupted run");
    notes
}
