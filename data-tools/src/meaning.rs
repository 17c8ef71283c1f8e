//! What a pack says, checked beyond its checksums: a pack from elsewhere may be whole and still
//! lie.
//!
//! What is cheap is checked whenever a pack is opened or a record is read ([`meta`], [`entry`],
//! [`annotations`]); [`crate::Split::verify`] adds the rest.

use dw_base::names;
use dw_base::text::shown;

use crate::format::{Annotations, Entry, GtBox, Meta};
use crate::pixels;

/// Longest thing that is put behind a split's name to make a file's name, bytes.
const LONGEST_SUFFIX: usize = 30;
/// Folders of a COCO data set that are no split's.
const RESERVED: [&str; 2] = ["annotations", "shards"];

/// Checks a split's name, which becomes names of files and folders.
///
/// # Errors
/// What is wrong with it, to be put behind the name.
pub fn split_name(name: &str) -> Result<(), String> {
    if RESERVED.contains(&name) {
        return Err("is the name of a folder that is no split's".into());
    }
    names::component(name, LONGEST_SUFFIX)
}

/// Checks the meta data of the split that is stored as `stem.dwindex`.
///
/// # Errors
/// The field and what is wrong with it.
pub fn meta(meta: &Meta, stem: &str, version: u32) -> Result<(), (&'static str, String)> {
    let split = &meta.split;
    if let Err(problem) = split_name(split) {
        return Err(("meta `split`", format!("`{}` {problem}", shown(split))));
    }
    if split != stem {
        let problem = format!("expected the file's own name, found `{}`", shown(split));
        return Err(("meta `split`", problem));
    }
    if meta.categories.is_empty() {
        return Err(("meta `categories`", "expected at least one, found none".into()));
    }
    if let Some(two) = meta.categories.windows(2).find(|two| two[0].id >= two[1].id) {
        let problem = format!("expected ascending ids, found {} before {}", two[0].id, two[1].id);
        return Err(("meta `categories`", problem));
    }
    let mut words = meta.source.split_whitespace().skip_while(|w| *w != "max-side");
    let max_side = words.nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    if version == 1 && max_side > 0 {
        let problem = format!(
            "packed with --max-side {max_side} by an older version, which kept no original sizes: \
             its boxes are in pixels of the shrunken images\nhint: pack the data again"
        );
        return Err(("meta `source`", problem));
    }
    Ok(())
}

/// Checks an index entry: sizes, and a shard among `shards`.
///
/// # Errors
/// What is wrong with it.
pub fn entry(e: &Entry, shards: usize) -> Result<(), String> {
    if e.shard as usize >= shards {
        return Err(format!("names shard {}, the index has {shards}", e.shard));
    }
    let (w, h) = e.original();
    pixels::sane(e.width as usize, e.height as usize)?;
    pixels::sane(w as usize, h as usize)?;
    if w < e.width || h < e.height {
        return Err(format!(
            "stored size {} x {} is larger than the original size {w} x {h}",
            e.width, e.height
        ));
    }
    Ok(())
}

/// Checks a record's boxes against its entry and the number of categories: labels, counts, and
/// boxes that are finite, have a positive size and meet the original image (they may reach over its
/// edge).
///
/// # Errors
/// The box and what is wrong with it.
pub fn annotations(a: &Annotations, e: &Entry, categories: usize) -> Result<(), String> {
    let crowd = a.boxes.iter().filter(|b| b.crowd).count();
    let found = (a.boxes.len() - crowd, crowd);
    if found != (e.boxes as usize, e.crowd as usize) {
        return Err(format!(
            "expected {} boxes and {} crowd regions (index), found {} and {}",
            e.boxes, e.crowd, found.0, found.1
        ));
    }
    for (n, b) in a.boxes.iter().enumerate() {
        if b.label as usize >= categories {
            return Err(format!(
                "box {n} (id {}): label {} is not below the number of categories, {categories}",
                b.id, b.label
            ));
        }
        if let Some(problem) = box_problem(b, e.original()) {
            return Err(format!("box {n} (id {}): {problem}", b.id));
        }
    }
    Ok(())
}

fn box_problem(b: &GtBox, (width, height): (u32, u32)) -> Option<String> {
    let [x, y, w, h] = b.bbox;
    let (width, height) = (f64::from(width), f64::from(height));
    let finite = b.bbox.iter().all(|v| v.is_finite());
    if !finite || w <= 0.0 || h <= 0.0 {
        return Some(format!("`bbox` {:?} is no box of positive, finite size", b.bbox));
    }
    if x >= width || y >= height || x + w <= 0.0 || y + h <= 0.0 {
        return Some(format!("`bbox` {:?} lies outside the {width} x {height} image", b.bbox));
    }
    if !b.area.is_finite() || b.area < 0.0 {
        return Some(format!("`area` {} is not a finite number of at least 0", b.area));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coco::Category;

    fn good() -> (Annotations, Entry) {
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

    fn refused(change: impl FnOnce(&mut GtBox)) -> String {
        let (mut a, e) = good();
        change(&mut a.boxes[0]);
        annotations(&a, &e, 2).unwrap_err()
    }

    #[test]
    fn boxes_that_mean_nothing_are_refused() {
        let (a, e) = good();
        annotations(&a, &e, 2).unwrap();
        assert!(annotations(&a, &e, 1).unwrap_err().contains("label 1"));
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for i in 0..4 {
                assert!(refused(|b| b.bbox[i] = bad).contains("bbox"), "{bad} at {i}");
            }
            assert!(refused(|b| b.area = bad).contains("area"));
        }
        assert!(refused(|b| b.bbox[2] = 0.0).contains("positive"));
        assert!(refused(|b| b.bbox[3] = -1.0).contains("positive"));
        assert!(refused(|b| b.bbox[0] = 20.0).contains("outside the 20 x 16"));
        assert!(refused(|b| b.bbox[1] = -4.0).contains("outside"));
        assert!(refused(|b| b.area = -1.0).contains("area"));
        assert!(refused(|b| b.crowd = true).contains("crowd regions"));
    }

    #[test]
    fn sizes_of_an_entry() {
        let (_, e) = good();
        entry(&e, 1).unwrap();
        assert!(entry(&e, 0).unwrap_err().contains("shard 0"));
        assert!(entry(&Entry { width: 0, ..e }, 1).is_err());
        assert!(entry(&Entry { original_height: 7, ..e }, 1).unwrap_err().contains("larger than"));
        assert!(entry(&Entry { original_width: u32::MAX, ..e }, 1).is_err());
    }

    #[test]
    fn meta_names_the_field() {
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
