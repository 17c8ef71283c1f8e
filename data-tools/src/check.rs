//! What is wrong with a COCO file, and what the chosen policies make of it: nothing is dropped silently.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use crate::coco::Coco;
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
}

/// Boxes of every image, in the order of `coco.images`.
///
/// # Errors
/// No images or categories, duplicate ids, annotations of unknown images or categories, images without size,
/// and bad boxes under [`BadBoxes::Fail`].
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
            return Err(Error::data(
                file,
                at(),
                format!("`image_id` {} is not among the file's images", a.image_id),
            ));
        };
        let Some(&label) = label.get(&a.category_id) else {
            return Err(Error::data(
                file,
                at(),
                format!("`category_id` {} is not among the file's categories", a.category_id),
            ));
        };
        let image = &coco.images[i];
        let (w, h) = (image.width as f64, image.height as f64);
        let [x, y, bw, bh] = a.bbox;
        let mut bbox = a.bbox;
        let finite = a.bbox.iter().all(|v| v.is_finite());
        let problem = if !finite || bw <= 0.0 || bh <= 0.0 {
            counts.without_area += 1;
            Some("has no area")
        } else if x >= w || y >= h || x + bw <= 0.0 || y + bh <= 0.0 {
            counts.outside += 1;
            Some("lies outside its image")
        } else if x < 0.0 || y < 0.0 || x + bw > w || y + bh > h {
            counts.over_edge += 1;
            if policy == BadBoxes::Clip {
                let (x1, y1) = (x.max(0.0), y.max(0.0));
                bbox = [x1, y1, (x + bw).min(w) - x1, (y + bh).min(h) - y1];
            }
            None
        } else {
            None
        };
        if let Some(problem) = problem {
            if policy == BadBoxes::Fail {
                let problem = format!(
                    "`bbox` [{x}, {y}, {bw}, {bh}] {problem} (image `{}` is {w} x {h})\nhint: --bad-boxes drop or clip leaves such boxes out and counts them",
                    image.file_name
                );
                return Err(Error::data(file, at(), problem));
            }
            continue;
        }
        let crowd = a.iscrowd != 0;
        if crowd {
            counts.crowd += 1;
        } else {
            counts.boxes += 1;
        }
        boxes[i].push(GtBox { id: a.id, bbox, area: a.area, label, crowd });
    }
    counts.empty_images = boxes.iter().filter(|b| b.is_empty()).count() as u64;
    Ok((boxes, counts))
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
    use crate::coco::{Annotation, Category, Image};

    fn coco(bbox: [f64; 4]) -> Coco {
        Coco {
            images: vec![Image { id: 5, file_name: "a.jpg".into(), width: 10, height: 8 }],
            annotations: vec![Annotation {
                id: 1,
                image_id: 5,
                category_id: 3,
                bbox,
                area: 1.0,
                iscrowd: 0,
            }],
            categories: vec![Category { id: 3, name: "x".into() }],
            images_alone: false,
        }
    }

    fn run(c: &Coco, policy: BadBoxes) -> Result<(Vec<Vec<GtBox>>, Counts)> {
        boxes_by_image(c, Path::new("f.json"), policy)
    }

    /// Pain 8: bad boxes give NaN in other trainers.
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
