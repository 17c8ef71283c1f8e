//! Detected boxes and their labels on an image: frames in the colour of the class, with class name
//! and score.

use dw_base::text::shown;
use dw_shards::coco::Category;
use plotters::backend::BitMapBackend;
use plotters::prelude::*;

use super::labels::{Area, place, shorten};
use super::{COLORS, drawing_error};
use crate::Result;
use crate::eval::detect::Detection;

/// Approximate width of a character of captions and labels at the smallest size, pixels.
pub const CHARACTER: usize = 8;

/// Sizes of labels and frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Height of the font, pixels.
    font: i32,
    /// Width of the frames, pixels.
    stroke: u32,
}

impl Style {
    /// The smallest legible style.
    pub const SMALL: Self = Self { font: 13, stroke: 2 };

    /// A style that remains visible when an image of `size` (w, h) is viewed as a whole.
    pub fn of(size: (u32, u32)) -> Self {
        let font = (size.0.min(size.1) / 40).clamp(Self::SMALL.font as u32, 60);
        Self { font: font as i32, stroke: (font / 8).max(Self::SMALL.stroke) }
    }

    /// Approximate width of a character, pixels.
    fn character(self) -> usize {
        CHARACTER * self.font as usize / Self::SMALL.font as usize
    }
}

/// The canvas.
pub type Root<'a> = DrawingArea<BitMapBackend<'a>, plotters::coord::Shift>;

/// Draws a text with its upper left corner at `at`.
pub fn text(root: &Root, text: &str, size: i32, at: (i32, i32), color: RGBColor) -> Result<()> {
    let style = TextStyle::from(("sans-serif", size).into_font()).color(&color);
    root.draw_text(text, &style, at).map_err(drawing_error)
}

/// Converts a box `[x1, y1, x2, y2]` in pixels of the original image to its corners in a drawing;
/// `scale`: pixels of the drawing per pixel of that image, (x, y).
pub fn corners([x1, y1, x2, y2]: [f64; 4], scale: (f64, f64)) -> [(i32, i32); 2] {
    // An annotation may reach far outside its image; the library draws every pixel of an edge.
    let pixel = |v: f64| v.clamp(-10_000.0, 100_000.0) as i32;
    let point = |x: f64, y: f64| (pixel(x * scale.0), pixel(y * scale.1));
    [point(x1, y1), point(x2, y2)]
}

/// Draws detections, given by descending score, and their labels into a drawing of `size` (w, h).
///
/// # Errors
/// A failure of the drawing library.
pub fn draw_detections(
    root: &Root,
    size: (u32, u32),
    categories: &[Category],
    detections: &[Detection],
    scale: (f64, f64),
    style: Style,
) -> Result<()> {
    let corners = |d: &Detection| corners(d.bbox.map(f64::from), scale);
    // In reverse order, so that the highest scores are on top.
    for d in detections.iter().rev() {
        let frame = Rectangle::new(corners(d), color(d).stroke_width(style.stroke));
        root.draw(&frame).map_err(drawing_error)?;
    }
    let size = (size.0 as i32, size.1 as i32);
    let mut occupied = vec![];
    for d in detections {
        let name =
            categories.get(d.label as usize).map_or(String::new(), |c| shown(&c.name).to_string());
        let name = shorten(&name, (size.0 as usize / style.character()).saturating_sub(5));
        let text = format!("{name} {:.2}", d.score);
        label(root, size, corners(d), color(d), &text, style, &mut occupied)?;
    }
    Ok(())
}

/// The colour of a detection's class.
fn color(d: &Detection) -> RGBColor {
    COLORS[d.label as usize % COLORS.len()]
}

/// Draws the label of a box on a background of its colour, without overlapping the `occupied`
/// areas, and adds its area to them. A line connects the label with the box if they do not touch. A
/// label without a free area is left out.
fn label(
    root: &Root,
    picture: (i32, i32),
    corners: [(i32, i32); 2],
    color: RGBColor,
    text: &str,
    style: Style,
    occupied: &mut Vec<Area>,
) -> Result<()> {
    let style = TextStyle::from(("sans-serif", style.font).into_font()).color(&BLACK);
    let (tw, th) = root.estimate_text_size(text, &style).map_err(drawing_error)?;
    let [(x, y), (x2, y2)] = corners;
    let target = Area { x, y, w: x2 - x, h: y2 - y };
    let Some(area) = place((tw as i32 + 3, th as i32 + 3), &target, picture, occupied) else {
        return Ok(());
    };
    let touches = area.x <= x2 && x <= area.x + area.w && area.y <= y2 && y <= area.y + area.h;
    if !touches {
        let from = (area.x + area.w / 2, area.y + area.h / 2);
        root.draw(&PathElement::new([from, (x, y)], color.stroke_width(1)))
            .map_err(drawing_error)?;
    }
    let background = [(area.x, area.y), (area.x + area.w - 1, area.y + area.h - 1)];
    root.draw(&Rectangle::new(background, color.filled())).map_err(drawing_error)?;
    root.draw_text(text, &style, (area.x + 1, area.y + 1)).map_err(drawing_error)?;
    occupied.push(area);
    Ok(())
}
