//! A detection data set that draws itself: textured backgrounds, overlapping anti-aliased shapes of
//! C classes in COCO's three sizes, crowds and empty images. The same arguments give the same
//! files.

use std::f32::consts::PI;
use std::path::Path;

use dw_base::text::shown;
use fs_err as fs;
use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use rayon::prelude::*;
use serde_json::{Value, json};
use tiny_skia::{Color, FillRule, PathBuilder, Pixmap, Rect, Stroke, Transform};

use crate::error::{Error, Result};
use crate::pixels::{Rgb, encode_jpeg};

mod outline;

use outline::{outline, paint};

/// What to draw.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Pictures of the split `train2017`.
    pub train: usize,
    /// Pictures of the split `val2017`.
    pub val: usize,
    /// Classes; shapes repeat in another paint after the first eight.
    pub classes: usize,
    /// Seed.
    pub seed: u64,
    /// Longest side of a picture in pixels.
    pub side: u32,
}

const SHAPES: [&str; 8] = ["disc", "square", "triangle", "star", "ring", "cross", "moon", "zigzag"];
const PAINTS: [&str; 4] = ["plain", "striped", "dotted", "hollow"];

/// Name of a class: `disc`, ..., then `striped disc`, ...
fn class_name(class: usize) -> String {
    match class / SHAPES.len() {
        0 => SHAPES[class].to_owned(),
        paint => format!("{} {}", PAINTS[paint], SHAPES[class % SHAPES.len()]),
    }
}

/// Draws both splits below `dir`, as a COCO folder.
///
/// # Errors
/// A class count that cannot be drawn, a folder that holds annotations already, a full disk.
pub fn write(dir: &Path, o: &Options, tick: impl Fn() + Sync) -> Result<()> {
    let most = SHAPES.len() * PAINTS.len();
    if !(1..=most).contains(&o.classes) {
        return Err(Error::Usage(format!("--classes: expected 1 to {most}, found {}", o.classes)));
    }
    if o.side < 64 {
        return Err(Error::Usage(format!("--side: expected at least 64, found {}", o.side)));
    }
    for (split, count, first_id) in [("train2017", o.train, 1), ("val2017", o.val, 1_000_001)] {
        if count > 0 {
            write_split(dir, split, count, first_id, o, &tick)?;
        }
    }
    Ok(())
}

fn write_split(
    dir: &Path,
    split: &str,
    count: usize,
    first_id: i64,
    o: &Options,
    tick: &(impl Fn() + Sync),
) -> Result<()> {
    let json_path = dir.join("annotations").join(format!("instances_{split}.json"));
    let images_dir = dir.join(split);
    let filled = fs::read_dir(&images_dir).is_ok_and(|mut entries| entries.next().is_some());
    if json_path.exists() || filled {
        let taken = if filled { &images_dir } else { &json_path };
        return Err(Error::Usage(format!(
            "cannot draw: {} exists already\nhint: choose an empty folder",
            shown(taken.display())
        )));
    }
    for d in [&dir.join(split), &dir.join("annotations")] {
        fs::create_dir_all(d).map_err(Error::io("cannot create folder", d))?;
    }
    let drawn: Vec<(Value, Vec<Value>)> = (0..count)
        .into_par_iter()
        .map(|i| {
            let id = first_id + i as i64;
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(o.seed ^ (id as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let scene = Scene::draw(&mut rng, o)?;
            let file_name = format!("{id:012}.jpg");
            let path = dir.join(split).join(&file_name);
            let jpeg = encode_jpeg(&scene.rgb(), 92).map_err(|e| Error::data(&path, "JPEG", e))?;
            fs::write(&path, jpeg).map_err(Error::io("cannot write", &path))?;
            tick();
            let image = json!({"id": id, "file_name": file_name, "width": scene.pixmap.width(), "height": scene.pixmap.height()});
            Ok((image, scene.annotations(id)))
        })
        .collect::<Result<_>>()?;
    let (images, mut annotations): (Vec<_>, Vec<_>) =
        drawn.into_iter().fold((vec![], vec![]), |(mut i, mut a), (image, boxes)| {
            i.push(image);
            a.extend(boxes);
            (i, a)
        });
    for (n, a) in annotations.iter_mut().enumerate() {
        a["id"] = json!(first_id + n as i64);
    }
    let categories: Vec<_> = (0..o.classes)
        .map(|c| json!({"id": 2 * c + 1, "name": class_name(c), "supercategory": "shape"}))
        .collect();
    let coco = json!({"info": {"description": "drawn by dw-pack synth", "seed": o.seed}, "licenses": [], "images": images,
                      "annotations": annotations, "categories": categories});
    let text = serde_json::to_vec(&coco).map_err(|e| Error::Usage(e.to_string()))?;
    fs::write(&json_path, text).map_err(Error::io("cannot write", &json_path))
}

/// One drawn box: class, `[x, y, w, h]`, area of the shape, crowd.
struct Drawn {
    class: usize,
    bbox: [f32; 4],
    area: f32,
    crowd: bool,
}

struct Scene {
    pixmap: Pixmap,
    boxes: Vec<Drawn>,
}

fn any_color(rng: &mut impl Rng, low: f32, high: f32) -> Color {
    let mut c = || rng.random_range(low..high);
    let (r, g, b) = (c(), c(), c());
    Color::from_rgba(r, g, b, 1.0).unwrap_or(Color::BLACK)
}

impl Scene {
    fn draw(rng: &mut impl Rng, o: &Options) -> Result<Self> {
        let short = o.side * rng.random_range(65..=100) / 100;
        let (w, h) = if rng.random_bool(0.5) { (o.side, short) } else { (short, o.side) };
        let pixmap = Pixmap::new(w, h)
            .ok_or_else(|| Error::Usage(format!("--side: cannot draw {w} x {h} pixels")))?;
        let mut scene = Self { pixmap, boxes: vec![] };
        scene.background(rng);
        let kind = rng.random_range(0..100);
        if kind >= 4 {
            if kind < 10 {
                scene.crowd(rng, o.classes);
            }
            for _ in 0..rng.random_range(2..=7) {
                scene.place(rng, o.classes);
            }
        }
        Ok(scene)
    }

    /// A vertical gradient, soft blobs, and faint stripes: something to be told from objects.
    fn background(&mut self, rng: &mut impl Rng) {
        let (w, h) = (self.pixmap.width() as f32, self.pixmap.height() as f32);
        let (top, bottom) = (any_color(rng, 0.25, 0.75), any_color(rng, 0.25, 0.75));
        let bands = 32;
        for i in 0..bands {
            let t = i as f32 / bands as f32;
            let mix = |a: f32, b: f32| a + (b - a) * t;
            let color = Color::from_rgba(
                mix(top.red(), bottom.red()),
                mix(top.green(), bottom.green()),
                mix(top.blue(), bottom.blue()),
                1.0,
            );
            let rect = Rect::from_xywh(0.0, h * t, w, h / bands as f32 + 1.0);
            if let (Some(color), Some(rect)) = (color, rect) {
                self.pixmap.fill_rect(rect, &paint(color), Transform::identity(), None);
            }
        }
        for _ in 0..14 {
            let mut color = any_color(rng, 0.2, 0.8);
            color.set_alpha(0.18);
            let (x, y, r) = (
                rng.random_range(0.0..w),
                rng.random_range(0.0..h),
                rng.random_range(0.05..0.25) * w,
            );
            if let Some(blob) = PathBuilder::from_circle(x, y, r) {
                self.pixmap.fill_path(
                    &blob,
                    &paint(color),
                    FillRule::Winding,
                    Transform::identity(),
                    None,
                );
            }
        }
        let (angle, gap) = (rng.random_range(0.0..PI), rng.random_range(8.0f32..24.0));
        let mut line = PathBuilder::new();
        for i in -60..60 {
            let d = i as f32 * gap;
            let (c, s) = (angle.cos(), angle.sin());
            line.move_to(w / 2.0 + d * c - 2000.0 * s, h / 2.0 + d * s + 2000.0 * c);
            line.line_to(w / 2.0 + d * c + 2000.0 * s, h / 2.0 + d * s - 2000.0 * c);
        }
        let mut color = any_color(rng, 0.0, 1.0);
        color.set_alpha(0.12);
        if let Some(path) = line.finish() {
            let stroke = Stroke { width: 1.5, ..Stroke::default() };
            self.pixmap.stroke_path(&path, &paint(color), &stroke, Transform::identity(), None);
        }
        // Grain, so that flat areas are not exactly flat.
        for p in self.pixmap.data_mut().chunks_exact_mut(4) {
            let grain = rng.random_range(-6..=6i16);
            for v in &mut p[..3] {
                *v = (*v as i16 + grain).clamp(0, 255) as u8;
            }
        }
    }

    /// Places one object where it does not hide an older one.
    fn place(&mut self, rng: &mut impl Rng, classes: usize) {
        let (w, h) = (self.pixmap.width() as f32, self.pixmap.height() as f32);
        for _ in 0..12 {
            // A third each of COCO's small, medium and large.
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
            let hides = self.boxes.iter().any(|d| {
                let [ax, ay, aw, ah] = d.bbox;
                let iw = (x + bw).min(ax + aw) - x.max(ax);
                let ih = (y + bh).min(ay + ah) - y.max(ay);
                iw > 0.0 && ih > 0.0 && iw * ih > 0.3 * (aw * ah).min(bw * bh)
            });
            if hides {
                continue;
            }
            let class = rng.random_range(0..classes);
            self.shape(rng, class, [x, y, bw, bh]);
            return;
        }
    }

    /// Many small objects of one class under one crowd box.
    fn crowd(&mut self, rng: &mut impl Rng, classes: usize) {
        let (w, h) = (self.pixmap.width() as f32, self.pixmap.height() as f32);
        let class = rng.random_range(0..classes);
        let (x, y) = (rng.random_range(2.0..w * 0.5), rng.random_range(2.0..h * 0.5));
        let (cw, ch) = (w * 0.4, h * 0.3);
        let before = self.boxes.len();
        for _ in 0..18 {
            let side = rng.random_range(10.0..18.0f32).min(ch - 2.0);
            let at = [
                x + rng.random_range(0.0..cw - side),
                y + rng.random_range(0.0..ch - side),
                side,
                side,
            ];
            self.shape(rng, class, at);
        }
        let area = self.boxes.drain(before..).map(|d| d.area).sum();
        self.boxes.push(Drawn { class, bbox: [x, y, cw, ch], area, crowd: true });
    }

    fn shape(&mut self, rng: &mut impl Rng, class: usize, [x, y, w, h]: [f32; 4]) {
        // Far from mid-grey, so that an object stands out of its background.
        let color =
            if rng.random_bool(0.5) { any_color(rng, 0.0, 0.3) } else { any_color(rng, 0.7, 1.0) };
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
        self.texture(style, &path, edge);
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
        self.boxes.push(Drawn { class, bbox, area: 0.7 * bbox[2] * bbox[3], crowd: false });
    }

    fn texture(&mut self, style: usize, path: &tiny_skia::Path, color: Color) {
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

    fn rgb(&self) -> Rgb {
        let data = self.pixmap.data().chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect();
        Rgb { width: self.pixmap.width() as usize, height: self.pixmap.height() as usize, data }
    }

    fn annotations(&self, image_id: i64) -> Vec<Value> {
        // Two decimals, as in COCO's own files.
        let round = |v: f32| (v as f64 * 100.0).round() / 100.0;
        let entry = |d: &Drawn| {
            json!({"id": 0, "image_id": image_id, "category_id": 2 * d.class + 1, "bbox": d.bbox.map(round), "area": round(d.area),
                   "iscrowd": u8::from(d.crowd), "segmentation": []})
        };
        self.boxes.iter().map(entry).collect()
    }
}
