//! One synthetic image: a background with objects and their annotations.

use dw_base::{Error, Result};
use rand::{Rng, RngExt};
use serde_json::{Value, json};
use tiny_skia::{Color, FillRule, PathBuilder, Pixmap, Rect, Stroke, Transform};

use super::background;
use super::classes::{SHAPES, category_id};
use super::outline::{outline, paint, random_color};
use crate::pixels::Rgb;

/// A drawn object or crowd region.
struct Object {
    class: usize,
    /// `[x, y, w, h]` in pixels.
    bbox: [f32; 4],
    /// Approximate area of the shape in square pixels.
    area: f32,
    crowd: bool,
}

/// An image and its objects.
pub(super) struct Scene {
    pixmap: Pixmap,
    objects: Vec<Object>,
}

impl Scene {
    /// Draws a random image whose longer side has `side` pixels: 4% without objects, 6% with a
    /// crowd region.
    ///
    /// # Errors
    /// A size that cannot be drawn.
    pub(super) fn draw(rng: &mut impl Rng, side: u32, num_classes: usize) -> Result<Self> {
        let short = side * rng.random_range(65..=100) / 100;
        let (w, h) = if rng.random_bool(0.5) { (side, short) } else { (short, side) };
        let pixmap = Pixmap::new(w, h)
            .ok_or_else(|| Error::Usage(format!("--side: cannot draw {w} x {h} pixels")))?;
        let mut scene = Self { pixmap, objects: vec![] };
        background::draw(&mut scene.pixmap, rng);
        let kind = rng.random_range(0..100);
        if kind >= 4 {
            if kind < 10 {
                scene.draw_crowd(rng, num_classes);
            }
            for _ in 0..rng.random_range(2..=7) {
                scene.place(rng, num_classes);
            }
        }
        Ok(scene)
    }

    /// Width and height in pixels.
    pub(super) fn size(&self) -> (u32, u32) {
        (self.pixmap.width(), self.pixmap.height())
    }

    /// Draws one object of a random class so that its overlap with any other box is at most 30% of
    /// the smaller of the two. Draws nothing if 12 random positions do not satisfy this.
    fn place(&mut self, rng: &mut impl Rng, num_classes: usize) {
        let (w, h) = (self.pixmap.width() as f32, self.pixmap.height() as f32);
        for _ in 0..12 {
            // About one third each are small, medium and large by COCO's definition.
            let side = match rng.random_range(0..3) {
                0 => rng.random_range(14.0..32.0),
                1 => rng.random_range(32.0..96.0f32),
                _ => rng.random_range(96.0..160.0f32),
            };
            let side = side.min(0.7 * w.min(h));
            let (bw, bh) =
                (side * rng.random_range(0.8..1.2f32), side * rng.random_range(0.8..1.2f32));
            if bw + 4.0 >= w || bh + 4.0 >= h {
                continue;
            }
            let (x, y) = (rng.random_range(1.0..w - bw - 1.0), rng.random_range(1.0..h - bh - 1.0));
            let overlaps = self.objects.iter().any(|d| {
                let [ax, ay, aw, ah] = d.bbox;
                let iw = (x + bw).min(ax + aw) - x.max(ax);
                let ih = (y + bh).min(ay + ah) - y.max(ay);
                iw > 0.0 && ih > 0.0 && iw * ih > 0.3 * (aw * ah).min(bw * bh)
            });
            if overlaps {
                continue;
            }
            let class = rng.random_range(0..num_classes);
            self.draw_object(rng, class, [x, y, bw, bh]);
            return;
        }
    }

    /// Draws many small objects of one class, annotated as one crowd region.
    fn draw_crowd(&mut self, rng: &mut impl Rng, num_classes: usize) {
        let (w, h) = (self.pixmap.width() as f32, self.pixmap.height() as f32);
        let class = rng.random_range(0..num_classes);
        let (x, y) = (rng.random_range(2.0..w * 0.5), rng.random_range(2.0..h * 0.5));
        let (cw, ch) = (w * 0.4, h * 0.3);
        let before = self.objects.len();
        for _ in 0..18 {
            let side = rng.random_range(10.0..18.0f32).min(ch - 2.0);
            let at = [
                x + rng.random_range(0.0..cw - side),
                y + rng.random_range(0.0..ch - side),
                side,
                side,
            ];
            self.draw_object(rng, class, at);
        }
        let area = self.objects.drain(before..).map(|d| d.area).sum();
        self.objects.push(Object { class, bbox: [x, y, cw, ch], area, crowd: true });
    }

    /// Draws an object of `class` in the box `[x, y, w, h]` and records its bounding box.
    fn draw_object(&mut self, rng: &mut impl Rng, class: usize, [x, y, w, h]: [f32; 4]) {
        // Dark or bright, in contrast to the background.
        let color = if rng.random_bool(0.5) {
            random_color(rng, 0.0, 0.3)
        } else {
            random_color(rng, 0.7, 1.0)
        };
        let edge = if color.red() > 0.5 { Color::BLACK } else { Color::WHITE };
        let Some(path) = outline(class % SHAPES.len(), [x, y, w, h]) else { return };
        let bounds = path.bounds();
        let style = class / SHAPES.len();
        if style < 3 {
            self.pixmap.fill_path(
                &path,
                &paint(color),
                FillRule::EvenOdd,
                Transform::identity(),
                None,
            );
        }
        self.fill_texture(style, &path, edge);
        let width = if style == 3 { (w.min(h) * 0.12).max(1.5) } else { 1.0 };
        let stroke = Stroke { width, ..Stroke::default() };
        self.pixmap.stroke_path(
            &path,
            &paint(if style == 3 { color } else { edge }),
            &stroke,
            Transform::identity(),
            None,
        );
        let half = width / 2.0;
        let bbox = [
            bounds.left() - half,
            bounds.top() - half,
            bounds.width() + width,
            bounds.height() + width,
        ];
        let (iw, ih) = (self.pixmap.width() as f32, self.pixmap.height() as f32);
        let (x1, y1) = (bbox[0].max(0.0), bbox[1].max(0.0));
        let bbox = [x1, y1, (bbox[0] + bbox[2]).min(iw) - x1, (bbox[1] + bbox[3]).min(ih) - y1];
        self.objects.push(Object { class, bbox, area: 0.7 * bbox[2] * bbox[3], crowd: false });
    }

    /// Fills an outline with stripes (style 1) or dots (style 2).
    fn fill_texture(&mut self, style: usize, path: &tiny_skia::Path, color: Color) {
        let Some(mut mask) = tiny_skia::Mask::new(self.pixmap.width(), self.pixmap.height()) else {
            return;
        };
        if !(1..=2).contains(&style) {
            return;
        }
        mask.fill_path(path, FillRule::EvenOdd, true, Transform::identity());
        let b = path.bounds();
        let gap = (b.width().min(b.height()) / 5.0).max(3.0);
        let mut marks = PathBuilder::new();
        let mut y = b.top();
        while y < b.bottom() {
            if style == 1 {
                if let Some(r) = Rect::from_xywh(b.left(), y, b.width(), gap / 2.0) {
                    marks.push_rect(r);
                }
            } else {
                let mut x = b.left() + gap / 2.0;
                while x < b.right() {
                    marks.push_circle(x, y + gap / 2.0, gap / 4.0);
                    x += gap;
                }
            }
            y += gap;
        }
        if let Some(marks) = marks.finish() {
            self.pixmap.fill_path(
                &marks,
                &paint(color),
                FillRule::Winding,
                Transform::identity(),
                Some(&mask),
            );
        }
    }

    /// The image without alpha.
    pub(super) fn rgb(&self) -> Rgb {
        let data = self.pixmap.data().chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect();
        Rgb { width: self.pixmap.width() as usize, height: self.pixmap.height() as usize, data }
    }

    /// Entries of `annotations` in COCO's format, with `id` 0.
    pub(super) fn annotations(&self, image_id: i64) -> Vec<Value> {
        // Two decimals, as in COCO's files.
        let round = |v: f32| (v as f64 * 100.0).round() / 100.0;
        let entry = |d: &Object| {
            json!({"id": 0, "image_id": image_id, "category_id": category_id(d.class),
                   "bbox": d.bbox.map(round), "area": round(d.area),
                   "iscrowd": u8::from(d.crowd), "segmentation": []})
        };
        self.objects.iter().map(entry).collect()
    }
}
