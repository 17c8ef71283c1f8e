//! Checks of the contents of a pack: its checksums can be valid while its values are not.
//!
//! These checks are cheap: they run whenever a pack is opened ([`meta`], [`entry`]) or a record is
//! read ([`annotations`]).

use dw_base::names;
use dw_base::text::shown;

use crate::format::{Annotations, Entry, GtBox, Meta};
use crate::pixels;

/// Longest suffix, in bytes, that is appended to the name of a split to make a file name.
const MAX_SUFFIX: usize = 30;
/// Folder names with a fixed meaning in a data set, which cannot be names of splits.
const RESERVED: [&str; 2] = ["annotations", "shards"];

/// Checks the name of a split, which becomes part of file and folder names.
///
/// # Errors
/// The problem, as a phrase that follows the name in a message.
pub fn split_name(name: &str) -> Result<(), String> {
    if RESERVED.contains(&name) {
        return Err("is a reserved folder name".into());
    }
    names::component(name, MAX_SUFFIX)
}

/// Checks the metadata of the split stored as `stem.dwindex`; `version` is that of the index.
///
/// # Errors
/// The field and the problem.
pub fn meta(meta: &Meta, stem: &str, version: u32) -> Result<(), (&'static str, String)> {
    let split = &meta.split;
    if let Err(problem) = split_name(split) {
        return Err(("meta `split`", format!("`{}` {problem}", shown(split))));
    }
    if split != stem {
        let problem =
            format!("expected the file's name `{}`, found `{}`", shown(stem), shown(split));
        return Err(("meta `split`", problem));
    }
    if meta.categories.is_empty() {
        return Err(("meta `categories`", "expected at least one category, found none".into()));
    }
    if let Some(two) = meta.categories.windows(2).find(|two| two[0].id >= two[1].id) {
        let problem = format!("expected ascending ids, found {} before {}", two[0].id, two[1].id);
        return Err(("meta `categories`", problem));
    }
    let mut words = meta.source.split_whitespace().skip_while(|w| *w != "max-side");
    let max_side = words.nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    if version == 1 && max_side > 0 {
        let problem = format!(
            "packed with --max-side {max_side} by a version that stored no original sizes: the \
             boxes are in pixels of the resized images\nhint: pack the data again"
        );
        return Err(("meta `source`", problem));
    }
    Ok(())
}

/// Checks the sizes and the shard number of an index entry. `shards` is the number of shards.
///
/// # Errors
/// The expected and the found value.
pub fn entry(e: &Entry, shards: usize) -> Result<(), String> {
    if e.shard as usize >= shards {
        return Err(format!("expected a shard below {shards}, found shard {}", e.shard));
    }
    let (w, h) = e.original();
    pixels::check_size(e.width as usize, e.height as usize)?;
    pixels::check_size(w as usize, h as usize)?;
    if w < e.width || h < e.height {
        return Err(format!(
            "stored size {} x {} is larger than the original size {w} x {h}",
            e.width, e.height
        ));
    }
    Ok(())
}

/// Checks the boxes of a record: their number is that of the index entry, labels are below
/// `categories`, and boxes are finite, of positive size and overlap the original image (they may
/// extend beyond its edge).
///
/// # Errors
/// The box and the problem.
pub fn annotations(a: &Annotations, e: &Entry, categories: usize) -> Result<(), String> {
    let crowd = a.boxes.iter().filter(|b| b.crowd).count();
    let found = (a.boxes.len() - crowd, crowd);
    if found != (e.boxes as usize, e.crowd as usize) {
        return Err(format!(
            "expected {} boxes and {} crowd regions (index entry), found {} and {}",
            e.boxes, e.crowd, found.0, found.1
        ));
    }
    for (n, b) in a.boxes.iter().enumerate() {
        if b.label as usize >= categories {
            return Err(format!(
                "box {n} (id {}): expected a label below {categories} (number of categories), \
                 found label {}",
                b.id, b.label
            ));
        }
        if let Some(problem) = box_problem(b, e.original()) {
            return Err(format!("box {n} (id {}): {problem}", b.id));
        }
    }
    Ok(())
}

/// The problem of a box in an image of `width` x `height`; `None` for a valid box.
fn box_problem(b: &GtBox, (width, height): (u32, u32)) -> Option<String> {
    let [x, y, w, h] = b.bbox;
    let (width, height) = (f64::from(width), f64::from(height));
    let finite = b.bbox.iter().all(|v| v.is_finite());
    if !finite || w <= 0.0 || h <= 0.0 {
        return Some(format!("expected a `bbox` of positive, finite size, found {:?}", b.bbox));
    }
    if x >= width || y >= height || x + w <= 0.0 || y + h <= 0.0 {
        return Some(format!("`bbox` {:?} is outside the {width} x {height} image", b.bbox));
    }
    if !b.area.is_finite() || b.area < 0.0 {
        return Some(format!("expected a finite `area` of at least 0, found {}", b.area));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coco::Category;

    fn valid() -> (Annotations, Entry) {
        let bbox = [-2.0, 5.0, 30.0, 4.0];
        let boxes = vec![GtBox { id: 1, bbox, area: 0.0, label: 1, crowd: false }];
        let entry = Entry {
            offset: 64,
            length: 64,
            image_id: 1,
            shard: 0,
            width: 10,
            height: 8,
            boxes: 1,
            crowd: 0,
            crc: 0,
            original_width: 20,
            original_height: 16,
        };
        (Annotations { file_name: "a.jpg".into(), boxes }, entry)
    }

    fn problem(change: impl FnOnce(&mut GtBox)) -> String {
        let (mut a, e) = valid();
        change(&mut a.boxes[0]);
        annotations(&a, &e, 2).unwrap_err()
    }

    #[test]
    fn invalid_boxes_are_rejected() {
        let (a, e) = valid();
        annotations(&a, &e, 2).unwrap();
        assert!(annotations(&a, &e, 1).unwrap_err().contains("label 1"));
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for i in 0..4 {
                assert!(problem(|b| b.bbox[i] = bad).contains("bbox"), "{bad} at {i}");
            }
            assert!(problem(|b| b.area = bad).contains("area"));
        }
        assert!(problem(|b| b.bbox[2] = 0.0).contains("positive"));
        assert!(problem(|b| b.bbox[3] = -1.0).contains("positive"));
        assert!(problem(|b| b.bbox[0] = 20.0).contains("outside the 20 x 16"));
        assert!(problem(|b| b.bbox[1] = -4.0).contains("outside"));
        assert!(problem(|b| b.area = -1.0).contains("area"));
        assert!(problem(|b| b.crowd = true).contains("crowd regions"));
    }

    #[test]
    fn entries_with_invalid_sizes_or_shards_are_rejected() {
        let (_, e) = valid();
        entry(&e, 1).unwrap();
        assert!(entry(&e, 0).unwrap_err().contains("shard 0"));
        assert!(entry(&Entry { width: 0, ..e }, 1).is_err());
        assert!(entry(&Entry { original_height: 7, ..e }, 1).unwrap_err().contains("larger than"));
        assert!(entry(&Entry { original_width: u32::MAX, ..e }, 1).is_err());
    }

    #[test]
    fn errors_in_metadata_name_the_field() {
        let category = |id| Category { id, name: "x".into() };
        let good = Meta {
            split: "val".into(),
            categories: vec![category(1), category(3)],
            source: "json 0 1; pixels zstd max-side 60 bad-boxes Drop".into(),
        };
        meta(&good, "val", 2).unwrap();
        let (field, problem) = meta(&good, "val", 1).unwrap_err();
        assert!(field.contains("source") && problem.contains("--max-side 60"), "{problem}");
        assert!(meta(&good, "train", 2).unwrap_err().0.contains("split"));
        for name in ["/tmp/x", "../x", "a/b", "", ".", "a\u{1b}", "annotations", "shards"] {
            let bad = Meta { split: name.into(), ..good.clone() };
            assert!(meta(&bad, name, 2).unwrap_err().0.contains("split"), "{name:?}");
        }
        for ids in [vec![], vec![1, 1], vec![3, 1]] {
            let categories = ids.iter().map(|&id| category(id)).collect();
            let bad = Meta { categories, ..good.clone() };
            assert!(meta(&bad, "val", 2).unwrap_err().0.contains("categories"), "{ids:?}");
        }
    }
}
