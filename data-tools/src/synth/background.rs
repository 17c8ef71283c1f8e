//! Backgrounds: a gradient, blobs, stripes and noise, so that objects are not the only structure.

use std::f32::consts::PI;

use rand::{Rng, RngExt};
use tiny_skia::{Color, FillRule, PathBuilder, Pixmap, Rect, Stroke, Transform};

use super::outline::{paint, random_color};

/// Draws a background over the whole image.
pub(super) fn draw(pixmap: &mut Pixmap, rng: &mut impl Rng) {
    gradient(pixmap, rng);
    blobs(pixmap, rng);
    stripes(pixmap, rng);
    noise(pixmap, rng);
}

/// A vertical gradient between two random colours.
fn gradient(pixmap: &mut Pixmap, rng: &mut impl Rng) {
    let (w, h) = (pixmap.width() as f32, pixmap.height() as f32);
    let (top, bottom) = (random_color(rng, 0.25, 0.75), random_color(rng, 0.25, 0.75));
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
            pixmap.fill_rect(rect, &paint(color), Transform::identity(), None);
        }
    }
}

/// Translucent discs.
fn blobs(pixmap: &mut Pixmap, rng: &mut impl Rng) {
    let (w, h) = (pixmap.width() as f32, pixmap.height() as f32);
    for _ in 0..14 {
        let mut color = random_color(rng, 0.2, 0.8);
        color.set_alpha(0.18);
        let (x, y, r) =
            (rng.random_range(0.0..w), rng.random_range(0.0..h), rng.random_range(0.05..0.25) * w);
        if let Some(blob) = PathBuilder::from_circle(x, y, r) {
            pixmap.fill_path(&blob, &paint(color), FillRule::Winding, Transform::identity(), None);
        }
    }
}

/// Faint parallel lines.
fn stripes(pixmap: &mut Pixmap, rng: &mut impl Rng) {
    let (w, h) = (pixmap.width() as f32, pixmap.height() as f32);
    let (angle, gap) = (rng.random_range(0.0..PI), rng.random_range(8.0f32..24.0));
    let mut line = PathBuilder::new();
    for i in -60..60 {
        let d = i as f32 * gap;
        let (c, s) = (angle.cos(), angle.sin());
        line.move_to(w / 2.0 + d * c - 2000.0 * s, h / 2.0 + d * s + 2000.0 * c);
        line.line_to(w / 2.0 + d * c + 2000.0 * s, h / 2.0 + d * s - 2000.0 * c);
    }
    let mut color = random_color(rng, 0.0, 1.0);
    color.set_alpha(0.12);
    if let Some(path) = line.finish() {
        let stroke = Stroke { width: 1.5, ..Stroke::default() };
        pixmap.stroke_path(&path, &paint(color), &stroke, Transform::identity(), None);
    }
}

/// Adds noise of at most 6 levels to every pixel.
fn noise(pixmap: &mut Pixmap, rng: &mut impl Rng) {
    for p in pixmap.data_mut().chunks_exact_mut(4) {
        let noise = rng.random_range(-6..=6i16);
        for v in &mut p[..3] {
            *v = (*v as i16 + noise).clamp(0, 255) as u8;
        }
    }
}
