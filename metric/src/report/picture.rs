//! Images with boxes: each image is stored once as a small JPEG, with the boxes as SVG over it.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::{FilterType, resize};

use super::format::counted;
use super::run::Run;
use crate::analysis::image::ImageScore;
use crate::analysis::scene::{Fate, Scene};

/// Maximum side length of a stored image in pixels.
const SIDE: u32 = 520;
/// JPEG quality of a stored image.
const QUALITY: u8 = 76;
/// Limit on the total size of all images in base64, in bytes. Once it is reached, further images
/// are only listed.
const MAX_BYTES: usize = 8_000_000;
/// Approximate width of an image on the page in pixels: for a single run, and for two side by side.
const SHOWN: [f64; 2] = [360.0, 280.0];
/// Font size of labels at that width in pixels.
const FONT: f64 = 11.5;

/// A stored image, which figures refer to.
pub(super) struct Photo {
    pub id: usize,
    pub width: u32,
    pub height: u32,
    /// Ratio of stored to original size.
    scale: f64,
    /// JPEG as base64.
    pub jpeg: String,
}

/// The stored images of a page.
#[derive(Default)]
pub(super) struct Album {
    pub photos: Vec<Photo>,
    /// Index of the photo by image id; `None` if the image is missing or the limit is reached.
    known: HashMap<i64, Option<usize>>,
    /// Total size of all photos in base64, in bytes.
    bytes: usize,
}

impl Album {
    /// Index of the photo of an image, from the first run that has it.
    fn photo(&mut self, runs: &[Run], image: i64) -> Option<usize> {
        if let Some(known) = self.known.get(&image) {
            return *known;
        }
        let found = if self.bytes < MAX_BYTES {
            runs.iter().find_map(|r| (r.input.pictures?)(image))
        } else {
            None
        };
        let photo = found.and_then(|rgb| {
            let scale =
                (f64::from(SIDE) / f64::from(rgb.width().max(rgb.height()).max(1))).min(1.0);
            let to = |side: u32| ((f64::from(side) * scale).round() as u32).max(1);
            let small = resize(&rgb, to(rgb.width()), to(rgb.height()), FilterType::Triangle);
            let mut jpeg = vec![];
            small.write_with_encoder(JpegEncoder::new_with_quality(&mut jpeg, QUALITY)).ok()?;
            Some(Photo {
                id: self.photos.len(),
                width: small.width(),
                height: small.height(),
                scale,
                jpeg: STANDARD.encode(jpeg),
            })
        });
        let at = photo.map(|p| {
            self.bytes += p.jpeg.len();
            self.photos.push(p);
            self.photos.len() - 1
        });
        self.known.insert(image, at);
        at
    }
}

/// A rectangle over a photo.
pub(super) struct Shape {
    /// `truth`, `hit`, `false` or `missed`.
    pub layer: &'static str,
    pub x: String,
    pub y: String,
    pub w: String,
    pub h: String,
    /// Shown on hover.
    pub title: String,
}

/// The label of a rectangle.
pub(super) struct Label {
    pub layer: &'static str,
    pub x: String,
    pub y: String,
    pub text: String,
}

/// A photo with boxes and labels.
pub(super) struct Shot {
    pub photo: usize,
    pub width: u32,
    pub height: u32,
    /// Font size of the labels in pixels of the photo.
    pub font: f64,
    pub shapes: Vec<Shape>,
    pub labels: Vec<Label>,
}

/// One image of a gallery.
pub(super) struct Entry {
    pub name: String,
    pub f1: String,
    pub hits: usize,
    pub false_positives: usize,
    pub missed: usize,
    /// Letter of the run; empty for a single run.
    pub letter: &'static str,
    pub shot: Option<Shot>,
}

impl Entry {
    /// Text alternative of the photo.
    pub(super) fn alt(&self) -> String {
        let found = counted(self.hits, "box found", "boxes found");
        let wrong = counted(self.false_positives, "false positive", "false positives");
        format!("{} {}: {found}, {wrong}, {} missed", self.name, self.letter, self.missed)
    }
}

/// An image with the boxes of one run.
pub(super) fn entry(album: &mut Album, runs: &[Run], run: usize, score: ImageScore) -> Entry {
    let r = &runs[run];
    let scene = &r.analysis.scenes[score.scene];
    let boxes = layers(scene, &r.labels, r.analysis.threshold);
    let shot = shot(album, runs, scene.image, boxes);
    Entry {
        name: image_name(r, scene.image),
        f1: super::format::score(score.f1()),
        hits: score.hits,
        false_positives: score.false_positives,
        missed: score.missed,
        letter: r.letter,
        shot,
    }
}

/// Name of an image, or its id if it has none.
pub(super) fn image_name(r: &Run, image: i64) -> String {
    r.input.image_names.and_then(|n| n(image)).unwrap_or_else(|| format!("image {image}"))
}

/// The photo of an image with boxes over it; `None` without a photo.
pub(super) fn shot(album: &mut Album, runs: &[Run], image: i64, boxes: Vec<Drawn>) -> Option<Shot> {
    let photo = album.photo(runs, image)?;
    Some(draw(&album.photos[photo], boxes, SHOWN[usize::from(runs.len() > 1)]))
}

/// A box to draw over a photo.
pub(super) struct Drawn {
    /// `truth`, `hit`, `false` or `missed`.
    pub layer: &'static str,
    /// What the box is, shown on hover before `text`.
    pub what: &'static str,
    /// `[x, y, w, h]` in pixels of the original image.
    pub bbox: [f64; 4],
    pub text: String,
}

/// Draws boxes. `shown` is the width of the photo on the page in pixels.
fn draw(photo: &Photo, mut boxes: Vec<Drawn>, shown: f64) -> Shot {
    let rank = |layer: &str| ["truth", "hit", "missed", "false"].iter().position(|l| *l == layer);
    boxes.sort_by_key(|b| rank(b.layer));
    let font = FONT * f64::from(photo.width) / shown;
    let mut shot = Shot {
        photo: photo.id,
        width: photo.width,
        height: photo.height,
        font,
        shapes: vec![],
        labels: vec![],
    };
    let pixels = |v: f64| format!("{v:.1}");
    let mut placed: Vec<[f64; 4]> = vec![];
    // Labels of errors are placed first, because they matter most.
    for Drawn { layer, what, bbox, text } in boxes.iter().rev() {
        let [x, y, w, h] = clip(bbox.map(|v| v * photo.scale), photo);
        shot.shapes.push(Shape {
            layer,
            x: pixels(x),
            y: pixels(y),
            w: pixels(w),
            h: pixels(h),
            title: format!("{what}: {text}"),
        });
        if *layer != "truth"
            && let Some((lx, ly)) = place_label(&mut placed, [x, y, w, h], text, font, photo)
        {
            shot.labels.push(Label { layer, x: pixels(lx), y: pixels(ly), text: text.clone() });
        }
    }
    shot.shapes.reverse();
    shot
}

/// The boxes of a scene at a score threshold.
fn layers(scene: &Scene, names: &[String], threshold: f64) -> Vec<Drawn> {
    let mut boxes = vec![];
    let found = |d: Option<usize>| d.is_some_and(|d| scene.found[d].score >= threshold);
    for t in &scene.truth {
        let (layer, what) = if found(t.matched) {
            ("truth", "ground truth (found)")
        } else {
            ("missed", "ground truth (missed)")
        };
        boxes.push(Drawn { layer, what, bbox: t.bbox, text: names[t.class].clone() });
    }
    for f in scene.found.iter().filter(|f| f.score >= threshold && f.fate != Fate::Ignored) {
        let (layer, what) = if f.fate == Fate::False {
            ("false", "false positive")
        } else {
            ("hit", "true positive")
        };
        let text = format!("{} {:.2}", names[f.class], f.score);
        boxes.push(Drawn { layer, what, bbox: f.bbox, text });
    }
    boxes
}

/// Clips a box to the photo, so that its edges are visible.
fn clip([x, y, w, h]: [f64; 4], photo: &Photo) -> [f64; 4] {
    let (right, bottom) = (f64::from(photo.width) - 1.0, f64::from(photo.height) - 1.0);
    let fit =
        |v: f64, most: f64| if v.is_finite() { v.clamp(1.0_f64.min(most), most) } else { 1.0 };
    let (x1, y1, x2, y2) = (fit(x, right), fit(y, bottom), fit(x + w, right), fit(y + h, bottom));
    [x1, y1, (x2 - x1).max(0.0), (y2 - y1).max(0.0)]
}

/// Start of a label's baseline: above, inside or below its box; `None` if all three places overlap
/// the photo's edge or another label.
fn place_label(
    placed: &mut Vec<[f64; 4]>,
    [x, y, _, h]: [f64; 4],
    text: &str,
    font: f64,
    photo: &Photo,
) -> Option<(f64, f64)> {
    let (width, height) = (text.chars().count() as f64 * font * 0.62 + 4.0, font + 3.0);
    let left = x.min(f64::from(photo.width) - width).max(0.0);
    let tops = [y - height, y, y + h];
    let fits = |top: f64| {
        let inside = top >= 0.0 && top + height <= f64::from(photo.height);
        inside
            && placed.iter().all(|p| {
                left >= p[2] || left + width <= p[0] || top >= p[3] || top + height <= p[1]
            })
    };
    let top = tops.into_iter().find(|t| fits(*t))?;
    placed.push([left, top, left + width, top + height]);
    Some((left + 2.0, top + font - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_clipped_and_labels_do_not_overlap() {
        let photo = Photo { id: 0, width: 100, height: 50, scale: 1.0, jpeg: String::new() };
        assert_eq!(clip([-10., -10., 500., 500.], &photo), [1., 1., 98., 48.]);
        assert_eq!(clip([f64::NAN, 10., 5., 5.], &photo)[0], 1.0);
        let mut placed = vec![];
        let first = place_label(&mut placed, [10., 20., 30., 10.], "a", 13.0, &photo).unwrap();
        let second = place_label(&mut placed, [10., 20., 30., 10.], "a", 13.0, &photo).unwrap();
        assert!(first.1 < second.1 && placed[0][3] <= placed[1][1]);
        place_label(&mut placed, [10., 20., 30., 10.], "a", 13.0, &photo);
        assert_eq!(place_label(&mut placed, [10., 20., 30., 10.], "a", 13.0, &photo), None);
    }
}
