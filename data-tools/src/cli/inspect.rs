//! `dw-pack info`, `verify`, `export` and `bench`.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use dw_base::program::{print_message, print_result};
use dw_base::text::{self, shown};
use dw_base::{Error, Result};
use serde_json::{Value, json};

use super::progress::progress;
use crate::coco::Category;
use crate::export;
use crate::reader::{Split, open_all, split_names};

/// Maximum number of category names that `info` prints.
const LISTED: usize = 100;

/// Prints JSON without control characters.
fn print_json(value: &Value) -> Result<()> {
    print_result(text::json(&value.to_string()))
}

/// Counts and sizes of a split, and the longest side in pixels of its resized images.
fn row(s: &Split) -> (Value, u32) {
    let (mut boxes, mut crowd, mut shrunken, mut longest) = (0u64, 0u64, 0u64, 0);
    for e in s.entries() {
        boxes += u64::from(e.boxes);
        crowd += u64::from(e.crowd);
        if e.is_shrunken() {
            shrunken += 1;
            longest = longest.max(e.width).max(e.height);
        }
    }
    let bytes: usize = s.shards().map(|(_, n)| n).sum();
    let row = json!({"images": s.len(), "boxes": boxes, "crowd": crowd,
                     "shards": s.shards().count(), "bytes": bytes, "shrunken": shrunken});
    (row, longest)
}

/// Warns about splits whose categories differ from those of the first split, which `info` prints.
fn warn_of_categories(splits: &[Split]) {
    let Some(first) = splits.first() else { return };
    for s in splits.iter().filter(|s| s.categories() != first.categories()) {
        print_message(&format!(
            "warning: the categories of `{}` are not those of `{}`, which are printed",
            shown(&s.meta.split),
            shown(&first.meta.split)
        ));
    }
}

/// Prints counts and sizes of all splits.
pub(super) fn info(out: &Path, as_json: bool) -> Result<()> {
    let splits = open_all(out)?;
    warn_of_categories(&splits);
    let category = |c: &Category| json!({"id": c.id, "name": c.name});
    let categories: Vec<_> =
        splits.first().map_or(vec![], |s| s.categories().iter().map(category).collect());
    let codecs: BTreeSet<&str> = splits.iter().map(|s| s.codec.name()).collect();
    let pixels = codecs.into_iter().collect::<Vec<_>>().join(", ");
    let version = splits.iter().map(Split::version).max();
    if as_json {
        let rows: serde_json::Map<_, _> =
            splits.iter().map(|s| (s.meta.split.clone(), row(s).0)).collect();
        return print_json(&json!({"version": version, "pixels": pixels, "categories": categories,
                           "splits": rows}));
    }
    print_result(format_args!(
        "{}: format {}, pixels {pixels}, {} categories",
        shown(out.display()),
        version.unwrap_or_default(),
        categories.len()
    ))?;
    let all = splits.first().map_or(&[][..], Split::categories);
    let names: Vec<&str> = all.iter().take(LISTED).map(|c| c.name.as_str()).collect();
    let more = match categories.len().saturating_sub(LISTED) {
        0 => String::new(),
        more => format!(" and {more} more (--json lists all)"),
    };
    print_result(format_args!("  categories: {}{more}", shown(names.join(", "))))?;
    for s in &splits {
        let (row, longest) = row(s);
        let resized = match row["shrunken"].as_u64() {
            None | Some(0) => String::new(),
            Some(n) => format!(
                ", {n} images resized (longer side at most {longest} pixels; boxes are in pixels \
                 of the originals)"
            ),
        };
        print_result(format_args!(
            "  {}: {} images, {} boxes, {} crowd, {} shards, {:.1} MB{resized}",
            shown(&s.meta.split),
            row["images"],
            row["boxes"],
            row["crowd"],
            row["shards"],
            row["bytes"].as_f64().unwrap_or(0.0) / 1e6
        ))?;
    }
    Ok(())
}

/// Verifies all splits; the error lists the first bad record of each shard.
pub(super) fn verify(out: &Path) -> Result<()> {
    let mut bad = vec![];
    for name in split_names(out)? {
        let split = match Split::open(out, &name) {
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
            print_result(format_args!(
                "{}: {} images, {} shards, all intact ({rate:.2} GB/s)",
                shown(&name),
                split.len(),
                split.shards().count()
            ))?;
        }
        bad.extend(found.iter().map(ToString::to_string));
    }
    if bad.is_empty() { Ok(()) } else { Err(Error::Inconsistent(bad.join("\n"))) }
}

/// Exports all splits into the folder `dir`.
pub(super) fn export(out: &Path, dir: &Path, format: export::Format) -> Result<()> {
    let splits = open_all(out)?;
    export::prepare(dir, &splits, format)?;
    let mut target = export::Target::new(dir, format)?;
    for split in splits {
        let name = shown(&split.meta.split);
        let bar = progress(&split.meta.split, split.len() as u64);
        let done = target.export_split(&split, || bar.inc(1));
        bar.finish_and_clear();
        let done = done?;
        if done.shrunken > 0 {
            print_message(&format!(
                "{name}: {} images are stored smaller than the originals: boxes and areas are \
                 written in pixels of the stored images",
                done.shrunken
            ));
        }
        if done.renamed > 0 {
            print_message(&format!(
                "{name}: {} images had the name of another image, whatever its case: their image \
                 id was appended",
                done.renamed
            ));
        }
        if done.crowd > 0 {
            print_message(&format!(
                "{name}: {} crowd regions are left out, as YOLO labels have none",
                done.crowd
            ));
        }
        print_result(format_args!(
            "{name}: {} images to {}",
            done.images,
            shown(done.images_dir.display())
        ))?;
    }
    target.finish()
}

/// Prints the single-core throughput of reading and decoding the first 512 images of each split,
/// the median of three runs.
pub(super) fn bench(out: &Path, as_json: bool) -> Result<()> {
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
            print_json(&json!({"split": split.meta.split, "pixels": split.codec.name(),
                               "images_per_s_per_core": rate, "megapixels_per_s": mpx,
                               "bytes_per_image": bytes}))?;
        } else {
            print_result(format_args!(
                "{}: {rate:.0} images/s on one core ({mpx:.0} Mpx/s), {bytes} bytes per image, \
                 codec {}",
                shown(&split.meta.split),
                split.codec.name()
            ))?;
        }
    }
    Ok(())
}
