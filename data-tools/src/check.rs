//! What is wrong with a COCO file, and what the chosen policies make of it: nothing is dropped
//! silently.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use dw_base::text::shown;

use crate::coco::{Annotation, Coco, Image};
use crate::error::{Error, Result};
use crate::format::{Entry, GtBox};

/// What to do with boxes that cannot be trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BadBoxes {
    /// Leave out boxes without area or wholly outside their image; keep the others as they are.
    Drop,
    /// Cut boxes to their image, then leave out those without area.
    Clip,
    /// End with an error.
    Fail,
}

/// What was counted while checking one split.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Boxes to train on.
    pub boxes: u64,
    /// Crowd regions.
    pub crowd: u64,
    /// Images with neither.
    pub empty_images: u64,
    /// Boxes of zero or negative width or height.
    pub without_area: u64,
    /// Boxes wholly outside their image.
    pub outside: u64,
    /// Boxes that reach over their image's edge.
    pub over_edge: u64,
    /// Boxes whose `area` is negative.
    pub odd_area: u64,
}

/// Boxes of every image, in the order of `coco.images`.
///
/// # Errors
/// No images or categories, duplicate ids, annotations of unknown images or categories, images
/// without size, and bad boxes under [`BadBoxes::Fail`].
pub fn boxes_by_image(
    coco: &Coco,
    file: &Path,
    policy: BadBoxes,
) -> Result<(Vec<Vec<GtBox>>, Counts)> {
    if coco.images.is_empty() {
        return Err(Error::data(file, "images", "expected at least one image, found none"));
    }
    if coco.categories.is_empty() {
        return Err(Error::data(file, "categories", "expected at least one category, found none"));
    }
    unique(file, "images", coco.images.iter().map(|i| i.id))?;
    unique(file, "categories", coco.categories.iter().map(|c| c.id))?;
    unique(file, "annotations", coco.annotations.iter().map(|a| a.id))?;
    for (n, image) in coco.images.iter().enumerate() {
        if image.width == 0 || image.height == 0 {
            let problem = format!(
                "`width` and `height` of image {} must not be 0, found {} x {}",
                image.id, image.width, image.height
            );
            return Err(Error::data(file, format!("images[{n}]"), problem));
        }
    }
    let place: HashMap<i64, usize> =
        coco.images.iter().enumerate().map(|(n, i)| (i.id, n)).collect();
    let label: HashMap<i64, u32> =
        coco.categories.iter().enumerate().map(|(n, c)| (c.id, n as u32)).collect();
    let mut boxes = vec![vec![]; coco.images.len()];
    let mut counts = Counts::default();
    for (n, a) in coco.annotations.iter().enumerate() {
        let at = || format!("annotations[{n}] (id {})", a.id);
        let Some(&i) = place.get(&a.image_id) else {
            let problem = format!("`image_id` {} is not among the file's images", a.image_id);
            return Err(Error::data(file, at(), problem));
        };
        let Some(&label) = label.get(&a.category_id) else {
            let problem =
                format!("`category_id` {} is not among the file's categories", a.category_id);
            return Err(Error::data(file, at(), problem));
        };
        let kept = usable(a, label, &coco.images[i], policy, &mut counts)
            .map_err(|problem| Error::data(file, at(), problem))?;
        if let Some(b) = kept {
            let count = if b.crowd { &mut counts.crowd } else { &mut counts.boxes };
            *count += 1;
            boxes[i].push(b);
        }
    }
    counts.empty_images = boxes.iter().filter(|b| b.is_empty()).count() as u64;
    Ok((boxes, counts))
}

/// What the policy makes of one annotation: a box, or `None` when it is left out.
fn usable(
    a: &Annotation,
    label: u32,
    image: &Image,
    policy: BadBoxes,
    counts: &mut Counts,
) -> std::result::Result<Option<GtBox>, String> {
    let (w, h) = (image.width as f64, image.height as f64);
    let [x, y, bw, bh] = a.bbox;
    let refused = |problem: &str| {
        format!(
            "{problem} (image `{}` is {w} x {h})\n\
             hint: --bad-boxes drop or clip leaves such boxes out and counts them",
            shown(&image.file_name)
        )
    };
    let bad = |problem: &str| match policy {
        BadBoxes::Fail => Err(refused(&format!("`bbox` [{x}, {y}, {bw}, {bh}] {problem}"))),
        BadBoxes::Drop | BadBoxes::Clip => Ok(None),
    };
    let finite = a.bbox.iter().all(|v| v.is_finite()) && (bw * bh).is_finite();
    if !finite || bw <= 0.0 || bh <= 0.0 {
        counts.without_area += 1;
        return bad("has no area");
    }
    if x >= w || y >= h || x + bw <= 0.0 || y + bh <= 0.0 {
        counts.outside += 1;
        return bad("lies outside its image");
    }
    let mut bbox = a.bbox;
    if x < 0.0 || y < 0.0 || x + bw > w || y + bh > h {
        counts.over_edge += 1;
        if policy == BadBoxes::Clip {
            let (x1, y1) = (x.max(0.0), y.max(0.0));
            bbox = [x1, y1, (x + bw).min(w) - x1, (y + bh).min(h) - y1];
            // So thin that it has no width as x2 - x1.
            if bbox[2] <= 0.0 || bbox[3] <= 0.0 {
                counts.without_area += 1;
                return Ok(None);
            }
        }
    }
    let mut area = a.area;
    if !area.is_finite() || area < 0.0 {
        counts.odd_area += 1;
        if policy == BadBoxes::Fail {
            return Err(format!(
                "`area` {area} is negative\nhint: --bad-boxes drop or clip uses width x height"
            ));
        }
        area = bw * bh;
    }
    Ok(Some(GtBox { id: a.id, bbox, area, label, crowd: a.iscrowd }))
}

fn unique(file: &Path, section: &str, ids: impl Iterator<Item = i64>) -> Result<()> {
    let mut seen = HashSet::new();
    for (n, id) in ids.enumerate() {
        if !seen.insert(id) {
            return Err(Error::data(
                file,
                format!("{section}[{n}]"),
                format!("`id` {id} was used before; ids must be unique"),
            ));
        }
    }
    Ok(())
}

impl Counts {
    /// Counts one image's boxes.
    pub fn add(&mut self, e: &Entry) {
        self.boxes += e.boxes as u64;
        self.crowd += e.crowd as u64;
        self.empty_images += u64::from(e.boxes + e.crowd == 0);
    }

    /// Lines for people about what was left out or is unusual; empty when there is nothing to tell.
    pub fn warnings(&self, policy: BadBoxes) -> Vec<String> {
        let verb = if policy == BadBoxes::Clip { "clipped" } else { "kept as they are" };
        [
            (self.without_area, "boxes without area: left out".to_owned()),
            (self.outside, "boxes outside their image: left out".to_owned()),
            (self.over_edge, format!("boxes reach over the edge of their image: {verb}")),
            (
                self.odd_area,
                "boxes with a negative `area`: their width x height is used".to_owned(),
            ),
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
            images: vec![Image { id: 5, file_name: "a.jpg".into(), width: 10, height: 8 }],
            annotations: vec![Annotation {
                id: 1,
                image_id: 5,
                category_id: 3,
                bbox,
                area: 1.0,
                iscrowd: false,
            }],
            categories: vec![Category { id: 3, name: "x".into() }],
            images_alone: false,
        }
    }

    fn run(c: &Coco, policy: BadBoxes) -> Result<(Vec<Vec<GtBox>>, Counts)> {
        boxes_by_image(c, Path::new("f.json"), policy)
    }

    /// Boxes without area give NaN in a loss, and an area below zero is in no size range.
    #[test]
    fn policies_on_bad_boxes() {
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
        assert_eq!((boxes[0][0].area, counts.odd_area), (6.0, 1));
        assert!(run(&negative, BadBoxes::Fail).unwrap_err().to_string().contains("`area` -1"));
        let huge = run(&coco([1.0, 1.0, 1e200, 1e200]), BadBoxes::Drop).unwrap();
        assert!(huge.0[0].is_empty() && huge.1.without_area == 1, "its area is infinite");
        let over = coco([6.0, 5.0, 9.0, 9.0]);
        assert_eq!(run(&over, BadBoxes::Drop).unwrap().0[0][0].bbox, [6.0, 5.0, 9.0, 9.0]);
        assert_eq!(run(&over, BadBoxes::Clip).unwrap().0[0][0].bbox, [6.0, 5.0, 4.0, 3.0]);
    }

    #[test]
    fn unknown_and_duplicate_ids_are_named() {
        let mut c = coco([1.0, 1.0, 2.0, 2.0]);
        c.annotations[0].image_id = 6;
        assert!(run(&c, BadBoxes::Drop).unwrap_err().to_string().contains("`image_id` 6"));
        let mut c = coco([1.0, 1.0, 2.0, 2.0]);
        c.annotations[0].category_id = 4;
        assert!(run(&c, BadBoxes::Drop).unwrap_err().to_string().contains("`category_id` 4"));
        let mut c = coco([1.0, 1.0, 2.0, 2.0]);
        let twin = c.annotations[0].clone();
        c.annotations.push(twin);
        assert!(run(&c, BadBoxes::Drop).unwrap_err().to_string().contains("annotations[1]"));
        c.images.clear();
        assert!(run(&c, BadBoxes::Drop).unwrap_err().to_string().contains("at least one image"));
    }
}
