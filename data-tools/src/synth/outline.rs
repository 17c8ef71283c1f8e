//! Outlines and paint of the shapes.

use std::f32::consts::PI;

use rand::{Rng, RngExt};
use tiny_skia::{Color, Paint, PathBuilder, Rect};

/// A random opaque colour with channels in `low..high`.
pub(super) fn random_color(rng: &mut impl Rng, low: f32, high: f32) -> Color {
    let mut c = || rng.random_range(low..high);
    let (r, g, b) = (c(), c(), c());
    Color::from_rgba(r, g, b, 1.0).unwrap_or(Color::BLACK)
}

/// Anti-aliased paint of one colour.
pub(super) fn paint(color: Color) -> Paint<'static> {
    let mut paint = Paint { anti_alias: true, ..Paint::default() };
    paint.set_color(color);
    paint
}

/// Corners of the cross in the unit square.
const CROSS: [(f32, f32); 12] = [
    (0.35, 0.0),
    (0.65, 0.0),
    (0.65, 0.35),
    (1.0, 0.35),
    (1.0, 0.65),
    (0.65, 0.65),
    (0.65, 1.0),
    (0.35, 1.0),
    (0.35, 0.65),
    (0.0, 0.65),
    (0.0, 0.35),
    (0.35, 0.35),
];
/// Corners of the zigzag in the unit square.
const ZIGZAG: [(f32, f32); 8] = [
    (0.0, 0.0),
    (0.4, 0.0),
    (0.7, 0.4),
    (0.5, 0.5),
    (1.0, 1.0),
    (0.5, 1.0),
    (0.2, 0.6),
    (0.4, 0.5),
];

/// Outline of a shape of [`SHAPES`](super::classes::SHAPES) in the box `[x, y, w, h]`.
pub(super) fn outline(shape: usize, [x, y, w, h]: [f32; 4]) -> Option<tiny_skia::Path> {
    let mut p = PathBuilder::new();
    let at = |u: f32, v: f32| (x + u * w, y + v * h);
    let mut polygon = |points: &[(f32, f32)]| {
        for (i, &(u, v)) in points.iter().enumerate() {
            let (px, py) = at(u, v);
            if i == 0 { p.move_to(px, py) } else { p.line_to(px, py) }
        }
        p.close();
    };
    match shape {
        1 => polygon(&[(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]),
        2 => polygon(&[(0.5, 0.0), (1.0, 1.0), (0.0, 1.0)]),
        3 => {
            let points: Vec<_> = (0..10)
                .map(|i| {
                    let (r, a) = (if i % 2 == 0 { 0.5 } else { 0.2 }, PI * (i as f32 / 5.0 - 0.5));
                    (0.5 + r * a.cos(), 0.5 + r * a.sin())
                })
                .collect();
            polygon(&points);
        }
        5 => polygon(&CROSS),
        6 => {
            let (x0, y0) = at(0.8, 0.0);
            p.move_to(x0, y0);
            let (c1, c2, e) = (at(-0.25, 0.0), at(-0.25, 1.0), at(0.8, 1.0));
            p.cubic_to(c1.0, c1.1, c2.0, c2.1, e.0, e.1);
            let (c1, c2) = (at(0.25, 0.85), at(0.25, 0.15));
            p.cubic_to(c1.0, c1.1, c2.0, c2.1, x0, y0);
            p.close();
        }
        7 => polygon(&ZIGZAG),
        _ => {
            p.push_oval(Rect::from_xywh(x, y, w, h)?);
            if shape == 4 {
                p.push_oval(Rect::from_xywh(x + 0.25 * w, y + 0.25 * h, 0.5 * w, 0.5 * h)?);
            }
        }
    }
    p.finish()
}
