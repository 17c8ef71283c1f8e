//! Draws the maps of one object: score and IoU, and the weights under each function.

use std::path::Path;

use dw_shards::pixels::Rgb;
use plotters::backend::BitMapBackend;
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::Result;
use crate::assign::figures::maps::{FunctionMaps, Maps};
use crate::show::{drawing_error, register_built_in_font, save_png};

/// Width of a map, pixels.
const MAP_WIDTH: f64 = 260.0;
/// Smallest and largest height of a map, pixels.
const MAP_HEIGHT: (f64, f64) = (120.0, 420.0);
/// Space between maps, pixels.
const GAP: i32 = 14;
/// Height of the title above a map and of the numbers below it, pixels.
const TEXT: i32 = 22;
/// Width of the colour bar with its labels, pixels.
const BAR: i32 = 90;
/// Height of the heading and of the explanation at the bottom, pixels.
const HEADING: i32 = 34;
/// Opacity of a cell's colour over the image.
const ALPHA: f64 = 0.6;
/// Margin of the shown image around the box, as a fraction of the size of the box.
const MARGIN: f64 = 0.2;

type Root<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

/// What a picture shows besides the maps.
#[derive(Debug)]
pub struct Scene<'a> {
    /// The stored image.
    pub image: &'a Rgb,
    /// Size (width, height) of the network input without padding, pixels.
    pub input: (f64, f64),
    /// Heading: image, object, network.
    pub heading: String,
}

/// The part of the network input that is shown, and its size in the picture.
struct Crop {
    /// Corners x1, y1, x2, y2, pixels of the network input.
    area: [f64; 4],
    /// Size in the picture, pixels.
    size: (i32, i32),
}

impl Crop {
    fn new(bbox: [f64; 4], input: (f64, f64)) -> Self {
        let [x1, y1, x2, y2] = bbox;
        let (dx, dy) = ((x2 - x1) * MARGIN, (y2 - y1) * MARGIN);
        let area = [
            (x1 - dx).max(0.0),
            (y1 - dy).max(0.0),
            (x2 + dx).min(input.0),
            (y2 + dy).min(input.1),
        ];
        let (width, height) = (area[2] - area[0], area[3] - area[1]);
        let height = (MAP_WIDTH * height / width).clamp(MAP_HEIGHT.0, MAP_HEIGHT.1);
        Self { area, size: (MAP_WIDTH as i32, height as i32) }
    }

    /// Converts a point of the network input to a pixel in a map whose upper left corner is `at`.
    fn place(&self, (x, y): (f64, f64), at: (i32, i32)) -> (i32, i32) {
        let [x1, y1, x2, y2] = self.area;
        let (u, v) = ((x - x1) / (x2 - x1), (y - y1) / (y2 - y1));
        let inside = |t: f64, length: i32| (t.clamp(0.0, 1.0) * f64::from(length)).round() as i32;
        (at.0 + inside(u, self.size.0), at.1 + inside(v, self.size.1))
    }
}

/// Draws the maps into the PNG file `out`.
///
/// # Errors
/// A file that cannot be written.
pub fn draw(maps: &Maps, scene: &Scene, out: &Path) -> Result<()> {
    register_built_in_font();
    let crop = Crop::new(maps.bbox, scene.input);
    let columns = 1 + maps.functions.len() as i32;
    let row = crop.size.1 + 2 * TEXT + GAP;
    let width = GAP + columns * (crop.size.0 + GAP) + BAR;
    let height = HEADING + 2 * row + HEADING;
    let mut pixels = vec![255u8; (width * height * 3) as usize];
    {
        let size = (width as u32, height as u32);
        let root = BitMapBackend::with_buffer(&mut pixels, size).into_drawing_area();
        root.fill(&WHITE).map_err(drawing_error)?;
        text(&root, &scene.heading, 16, (GAP, 8))?;
        let at = |column: i32, line: i32| {
            (GAP + column * (crop.size.0 + GAP), HEADING + line * row + TEXT)
        };
        for (column, line, panel) in panels(maps) {
            panel.draw(&root, maps, scene, &crop, at(column, line))?;
        }
        let bar = (width - BAR + 4, at(0, 0).1);
        color_bar(&root, bar, 2 * row - GAP - 2 * TEXT)?;
        let explanation = "score and IoU: 0 to 1; weights: relative to the largest one in the box. \
                           ATSS: its positive points, others 0; else all points inside the box.";
        text(&root, explanation, 13, (GAP, height - HEADING + 8))?;
        root.present().map_err(drawing_error)?;
    }
    save_png(out, width as u32, height as u32, &pixels)
}

/// One map.
struct Panel<'a> {
    title: String,
    values: &'a [f64],
    /// The value at the top of the colour bar.
    most: f64,
    /// Numbers below the map.
    below: String,
}

/// The maps with their column and line.
fn panels(maps: &Maps) -> Vec<(i32, i32, Panel<'_>)> {
    let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    let plain = |title: &str, values| Panel {
        title: title.into(),
        values,
        most: 1.0,
        below: format!("largest {:.3}", most(values)),
    };
    let weight = |f: &FunctionMaps, name: &str, values, more: String| Panel {
        title: format!("{} {name}", f.name),
        values,
        most: most(values),
        below: format!("largest {:.3}{more}", most(values)),
    };
    let mut all =
        vec![(0, 0, plain("score", &maps.score[..])), (0, 1, plain("IoU", &maps.iou[..]))];
    for (i, f) in maps.functions.iter().enumerate() {
        let near = format!(", {:.0} % within 1.5 strides", 100.0 * f.near);
        let column = i as i32 + 1;
        all.push((column, 0, weight(f, "w_pos", &f.positive, near)));
        all.push((column, 1, weight(f, "w_neg", &f.negative, String::new())));
    }
    all
}

impl Panel<'_> {
    fn draw(
        &self,
        root: &Root,
        maps: &Maps,
        scene: &Scene,
        crop: &Crop,
        at: (i32, i32),
    ) -> Result<()> {
        text(root, &self.title, 15, (at.0, at.1 - TEXT + 4))?;
        background(root, scene, crop, at)?;
        let half = maps.stride / 2.0;
        for ((x, y), value) in maps.points.iter().zip(self.values) {
            let corners = [(x - half, y - half), (x + half, y + half)].map(|p| crop.place(p, at));
            let color = color(value / self.most.max(f64::MIN_POSITIVE)).mix(ALPHA);
            root.draw(&Rectangle::new(corners, color.filled())).map_err(drawing_error)?;
        }
        let [x1, y1, x2, y2] = maps.bbox;
        let corners = [(x1, y1), (x2, y2)].map(|p| crop.place(p, at));
        root.draw(&Rectangle::new(corners, BLACK.stroke_width(3))).map_err(drawing_error)?;
        root.draw(&Rectangle::new(corners, WHITE.stroke_width(1))).map_err(drawing_error)?;
        text(root, &self.below, 13, (at.0, at.1 + crop.size.1 + 4))
    }
}

/// Draws the image under a map, in grey, so that the map's colours are not mixed with its own.
fn background(root: &Root, scene: &Scene, crop: &Crop, at: (i32, i32)) -> Result<()> {
    let [x1, y1, x2, y2] = crop.area;
    let scale =
        (scene.image.width as f64 / scene.input.0, scene.image.height as f64 / scene.input.1);
    let source = |t: f64, from: f64, to: f64, scale: f64, length: usize| {
        ((((from + t * (to - from)) * scale) as usize).min(length - 1)) as i64
    };
    for v in 0..crop.size.1 {
        let row = f64::from(v) / f64::from(crop.size.1);
        let row = source(row, y1, y2, scale.1, scene.image.height) as usize;
        for u in 0..crop.size.0 {
            let column = f64::from(u) / f64::from(crop.size.0);
            let column = source(column, x1, x2, scale.0, scene.image.width) as usize;
            let pixel = &scene.image.data[(row * scene.image.width + column) * 3..][..3];
            let grey = pixel.iter().map(|c| f64::from(*c)).sum::<f64>() / 3.0;
            let grey = grey.round() as u8;
            let color = RGBColor(grey, grey, grey);
            root.draw_pixel((at.0 + u, at.1 + v), &color).map_err(drawing_error)?;
        }
    }
    Ok(())
}

/// The colour of a value from 0 to 1: brighter is more.
fn color(value: f64) -> RGBColor {
    ViridisRGB.get_color(value.clamp(0.0, 1.0) as f32)
}

/// Draws the colour bar with its labels.
fn color_bar(root: &Root, at: (i32, i32), height: i32) -> Result<()> {
    for v in 0..height {
        let value = 1.0 - f64::from(v) / f64::from(height);
        let corners = [(at.0, at.1 + v), (at.0 + 18, at.1 + v + 1)];
        let line = Rectangle::new(corners, color(value).filled());
        root.draw(&line).map_err(drawing_error)?;
    }
    for tenth in [0, 2, 4, 6, 8, 10] {
        let y = at.1 + height - height * tenth / 10;
        text(root, &format!("{:.1}", f64::from(tenth) / 10.0), 14, (at.0 + 24, y - 7))?;
    }
    Ok(())
}

/// Draws a text with its upper left corner at `at`.
fn text(root: &Root, text: &str, size: i32, at: (i32, i32)) -> Result<()> {
    root.draw_text(text, &("sans-serif", size).into_text_style(root), at).map_err(drawing_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crop_shows_the_box_with_a_margin_inside_the_image() {
        let crop = Crop::new([10.0, 20.0, 110.0, 70.0], (120.0, 200.0));
        assert_eq!(crop.area, [0.0, 10.0, 120.0, 80.0]);
        assert_eq!(crop.place((0.0, 10.0), (5, 7)), (5, 7));
        let (x, y) = crop.place((500.0, 45.0), (0, 0));
        assert!(x == crop.size.0 && (y - crop.size.1 / 2).abs() <= 1, "{x} {y}");
        assert!(color(1.0) != color(0.0));
    }
}
