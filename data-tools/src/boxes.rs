//! Ground-truth boxes of a COCO file, checked and filtered by a policy. Every box that is left out
//! or changed is counted.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use dw_base::text::shown;
use dw_base::{Error, Result};

use crate::coco::{Annotation, Coco, Image};
use crate::format::{Entry, GtBox};

/// Policy for boxes without area or outside their image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BadBoxes {
    /// Leave out boxes without area or entirely outside their image; keep the others unchanged.
    Drop,
    /// Clip boxes to their image, then leave out those without area.
    Clip,
    /// Stop with an error.
    Fail,
}

/// Counts of boxes and images of one split.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Boxes that are kept, excluding crowd regions.
    pub boxes: u64,
    /// Crowd regions that are kept.
    pub crowd: u64,
    /// Those of them that are only marked with `ignore`.
    pub ignored: u64,
    /// Images with neither boxes nor crowd regions.
    pub empty_images: u64,
    /// Boxes of zero, negative or infinite size: left out.
    pub without_area: u64,
    /// Boxes entirely outside their image: left out.
    pub outside: u64,
    /// Boxes that extend beyond the edge of their image.
    pub over_edge: u64,
    /// Boxes whose `area` is negative or not finite; the area is replaced by width x height.
    pub bad_area: u64,
}

/// Checks a COCO file and returns the boxes of every image, in the order of `coco.images`. `file`
/// is named in errors.
///
/// # Errors
/// No images or categories, duplicate ids, images without size, annotations of unknown images or
/// categories, and bad boxes under [`BadBoxes::Fail`].
pub fn boxes_by_image(
    coco: &Coco,
    file: &Path,
    policy: BadBoxes,
) -> Result<(Vec<Vec<GtBox>>, Counts)> {
    check_sections(coco, file)?;
    let position = check_ids(coco, file)?;
    let label: HashMap<i64, u32> =
        coco.categories.iter().enumerate().map(|(n, c)| (c.id, n as u32)).collect();
    let mut boxes = vec![vec![]; coco.images.len()];
    let mut counts = Counts::default();
    for (n, a) in coco.annotations.iter().enumerate() {
        let at = || place(n, a);
        let i = position[&a.image_id];
        let Some(&label) = label.get(&a.category_id) else {
            let problem =
                format!("no entry of `categories` has the `category_id` {}", a.category_id);
            return Err(Error::data(file, at(), problem));
        };
        let kept = apply_policy(a, label, &coco.images[i], policy, &mut counts)
            .map_err(|problem| Error::data(file, at(), problem))?;
        if let Some(b) = kept {
            let count = if b.crowd { &mut counts.crowd } else { &mut counts.boxes };
            *count += 1;
            counts.ignored += u64::from(a.ignore && !a.iscrowd);
            boxes[i].push(b);
        }
    }
    counts.empty_images = boxes.iter().filter(|b| b.is_empty()).count() as u64;
    Ok((boxes, counts))
}

/// The place of an annotation in errors.
fn place(n: usize, a: &Annotation) -> String {
    format!("annotations[{n}] (id {})", a.id)
}

/// Checks that ids are unique and that every annotation is one of an image; returns the positions
/// of the images by their ids. `file` is named in errors.
///
/// # Errors
/// The first fault.
pub(crate) fn check_ids(coco: &Coco, file: &Path) -> Result<HashMap<i64, usize>> {
    check_unique(file, "images", coco.images.iter().map(|i| i.id))?;
    check_unique(file, "categories", coco.categories.iter().map(|c| c.id))?;
    check_unique(file, "annotations", coco.annotations.iter().map(|a| a.id))?;
    let position: HashMap<i64, usize> =
        coco.images.iter().enumerate().map(|(n, i)| (i.id, n)).collect();
    let unknown = |(_, a): &(usize, &Annotation)| !position.contains_key(&a.image_id);
    if let Some((n, a)) = coco.annotations.iter().enumerate().find(unknown) {
        let problem = format!("no entry of `images` has the `image_id` {}", a.image_id);
        return Err(Error::data(file, place(n, a), problem));
    }
    Ok(position)
}

/// Checks that there are images and categories, and that images have a size.
fn check_sections(coco: &Coco, file: &Path) -> Result<()> {
    if coco.images.is_empty() {
        return Err(Error::data(file, "images", "expected at least one image, found none"));
    }
    if coco.categories.is_empty() {
        return Err(Error::data(file, "categories", "expected at least one category, found none"));
    }
    for (n, image) in coco.images.iter().enumerate() {
        if image.width == 0 || image.height == 0 {
            let problem = format!(
                "`width` and `height` of image {} must be at least 1, found {} x {}",
                image.id, image.width, image.height
            );
            return Err(Error::data(file, format!("images[{n}]"), problem));
        }
    }
    Ok(())
}

/// The box of one annotation under `policy`; `None` if it is left out.
fn apply_policy(
    a: &Annotation,
    label: u32,
    image: &Image,
    policy: BadBoxes,
    counts: &mut Counts,
) -> std::result::Result<Option<GtBox>, String> {
    let (w, h) = (image.width as f64, image.height as f64);
    let [x, y, bw, bh] = a.bbox;
    let message = |problem: &str| {
        format!(
            "{problem} (image `{}` is {w} x {h})\n\
             hint: `--bad-boxes drop` or `clip` leaves such boxes out and counts them",
            shown(&image.file_name)
        )
    };
    let bad = |problem: &str| match policy {
        BadBoxes::Fail => Err(message(&format!("`bbox` [{x}, {y}, {bw}, {bh}] {problem}"))),
        BadBoxes::Drop | BadBoxes::Clip => Ok(None),
    };
    let finite = a.bbox.iter().all(|v| v.is_finite()) && (bw * bh).is_finite();
    if !finite || bw <= 0.0 || bh <= 0.0 {
        counts.without_area += 1;
        return bad("has no area");
    }
    if x >= w || y >= h || x + bw <= 0.0 || y + bh <= 0.0 {
        counts.outside += 1;
        return bad("is outside its image");
    }
    let mut bbox = a.bbox;
    let mut area = a.area;
    if x < 0.0 || y < 0.0 || x + bw > w || y + bh > h {
        counts.over_edge += 1;
        if policy == BadBoxes::Clip {
            let (x1, y1) = (x.max(0.0), y.max(0.0));
            bbox = [x1, y1, (x + bw).min(w) - x1, (y + bh).min(h) - y1];
            // Rounding can leave a thin box without width or height.
            if bbox[2] <= 0.0 || bbox[3] <= 0.0 {
                counts.without_area += 1;
                return Ok(None);
            }
            // The area of a segmentation is kept, because the segmentation lies inside the image.
            // An area equal to that of the box comes from a format without segmentations and is
            // clipped with the box.
            if (area - bw * bh).abs() <= 1e-6 * area {
                area = bbox[2] * bbox[3];
            }
        }
    }
    if !area.is_finite() || area < 0.0 {
        counts.bad_area += 1;
        area = corrected_area(area, bbox, policy)?;
    }
    Ok(Some(GtBox { id: a.id, bbox, area, label, crowd: a.iscrowd || a.ignore }))
}

/// The area that replaces an invalid one.
fn corrected_area(area: f64, bbox: [f64; 4], policy: BadBoxes) -> std::result::Result<f64, String> {
    if policy == BadBoxes::Fail {
        return Err(format!(
            "expected an `area` of at least 0, found {area}\n\
             hint: `--bad-boxes drop` or `clip` uses width x height"
        ));
    }
    Ok(bbox[2] * bbox[3])
}

fn check_unique(file: &Path, section: &str, ids: impl Iterator<Item = i64>) -> Result<()> {
    let mut seen = HashSet::new();
    for (n, id) in ids.enumerate() {
        if !seen.insert(id) {
            return Err(Error::data(
                file,
                format!("{section}[{n}]"),
                format!("expected a unique `id`, found {id} a second time"),
            ));
        }
    }
    Ok(())
}

impl Counts {
    /// Adds the boxes of one image.
    pub fn add(&mut self, e: &Entry) {
        self.boxes += e.boxes as u64;
        self.crowd += e.crowd as u64;
        self.empty_images += u64::from(e.boxes + e.crowd == 0);
    }

    /// One line for each kind of box that was left out, changed or is unusual.
    pub fn warnings(&self, policy: BadBoxes) -> Vec<String> {
        let verb = if policy == BadBoxes::Clip { "clipped" } else { "kept unchanged" };
        let ignored = "boxes with `ignore` 1: neither trained on nor counted by the metric, like \
                       crowd regions";
        [
            (self.ignored, ignored.to_owned()),
            (self.without_area, "boxes without area: left out".to_owned()),
            (self.outside, "boxes outside their image: left out".to_owned()),
            (self.over_edge, format!("boxes extend beyond their image: {verb}")),
            (self.bad_area, "boxes with a negative `area`: replaced by width x height".to_owned()),
        ]
        .into_iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, text)| format!("{n} {text}"))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coco::Category;

    fn coco(bbox: [f64; 4]) -> Coco {
        Coco {
            images: vec![Image {
                id: 5,
                file_name: "a.jpg".into(),
                width: 10,
                height: 8,
                measured: false,
            }],
            annotations: vec![Annotation {
                id: 1,
                image_id: 5,
                category_id: 3,
                bbox,
                area: 1.0,
                iscrowd: false,
                ignore: false,
            }],
            categories: vec![Category { id: 3, name: "x".into() }],
            images_only: false,
        }
    }

    fn run(c: &Coco, policy: BadBoxes) -> Result<(Vec<Vec<GtBox>>, Counts)> {
        boxes_by_image(c, Path::new("f.json"), policy)
    }

    /// Boxes without area make a loss NaN; a negative area falls into no size range of the metric.
    #[test]
    fn bad_boxes_are_treated_by_the_policy() {
        for (bbox, field) in [
            ([1.0, 1.0, 0.0, 2.0], "area"),
            ([1.0, 1.0, -3.0, 2.0], "area"),
            ([11.0, 1.0, 2.0, 2.0], "outside"),
        ] {
            let (boxes, counts) = run(&coco(bbox), BadBoxes::Drop).unwrap();
            assert!(boxes[0].is_empty() && counts.without_area + counts.outside == 1, "{bbox:?}");
            assert!(run(&coco(bbox), BadBoxes::Fail).unwrap_err().to_string().contains(field));
        }
        let mut negative = coco([1.0, 1.0, 2.0, 3.0]);
        negative.annotations[0].area = -1.0;
        let (boxes, counts) = run(&negative, BadBoxes::Drop).unwrap();
        assert_eq!((boxes[0][0].area, counts.bad_area), (6.0, 1));
        assert!(run(&negative, BadBoxes::Fail).unwrap_err().to_string().contains("`area`"));
        let huge = run(&coco([1.0, 1.0, 1e200, 1e200]), BadBoxes::Drop).unwrap();
        assert!(huge.0[0].is_empty() && huge.1.without_area == 1, "the area is infinite");
        let over = coco([6.0, 5.0, 9.0, 9.0]);
        assert_eq!(run(&over, BadBoxes::Drop).unwrap().0[0][0].bbox, [6.0, 5.0, 9.0, 9.0]);
        let clipped = |area| {
            let mut c = coco([6.0, 5.0, 9.0, 9.0]);
            c.annotations[0].area = area;
            run(&c, BadBoxes::Clip).unwrap().0[0][0]
        };
        assert_eq!(clipped(1.0).bbox, [6.0, 5.0, 4.0, 3.0]);
        // The area of a segmentation is kept; the area of a box becomes that of the clipped box.
        assert_eq!([1.0, 81.0, -1.0].map(|area| clipped(area).area), [1.0, 12.0, 12.0]);
    }

    #[test]
    fn unknown_and_duplicate_ids_are_reported() {
        let mut c = coco([1.0, 1.0, 2.0, 2.0]);
        c.annotations[0].image_id = 6;
        assert!(run(&c, BadBoxes::Drop).unwrap_err().to_string().contains("`image_id` 6"));
        let mut c = coco([1.0, 1.0, 2.0, 2.0]);
        c.annotations[0].category_id = 4;
        assert!(run(&c, BadBoxes::Drop).unwrap_err().to_string().contains("`category_id` 4"));
        let mut c = coco([1.0, 1.0, 2.0, 2.0]);
        let duplicate = c.annotations[0].clone();
        c.annotations.push(duplicate);
        assert!(run(&c, BadBoxes::Drop).unwrap_err().to_string().contains("annotations[1]"));
        c.images.clear();
        assert!(run(&c, BadBoxes::Drop).unwrap_err().to_string().contains("f.json: images:"));
    }
}
