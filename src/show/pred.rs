//! Images with their true boxes (white with a black outline) and predicted boxes (colour of the
//! class, with class name and score).

use std::path::Path;

use dw_base::text::shown;
use dw_shards::format::GtBox;
use plotters::backend::BitMapBackend;
use plotters::prelude::*;
use tch::Device;

use super::labels::{Area, place, shorten};
use super::{COLORS, drawing_error, register_built_in_font, save_png};
use crate::Result;
use crate::data::{DataConfig, Dataset};
use crate::eval::EvalConfig;
use crate::eval::detect::Detection;
use crate::eval::infer::{Timings, detect_records};
use crate::model::Detector;

/// Height of a tile's image, pixels.
const TILE_HEIGHT: u32 = 320;
/// Space between tiles, pixels.
const GAP: u32 = 6;
/// Height of the file name below an image, pixels.
const CAPTION: u32 = 18;
/// Height of a row of tiles, pixels.
const ROW_HEIGHT: u32 = TILE_HEIGHT + CAPTION + GAP;
/// Height of the legend, pixels.
const LEGEND: u32 = 26;
/// Width that the legend needs, pixels.
const LEGEND_WIDTH: u32 = 560;
/// Approximate width of a character of captions and labels, pixels.
const CHARACTER: usize = 8;
/// Grey level of the background.
const BACKGROUND: u8 = 24;

/// What to draw.
pub struct View<'a> {
    /// The network.
    pub detector: &'a Detector,
    /// The images.
    pub data: &'a Dataset,
    /// Size of the network input.
    pub input: &'a DataConfig,
    /// Post-processing.
    pub eval: &'a EvalConfig,
    /// Detections with a score of at most this are not drawn.
    pub score: f32,
}

/// Draws all images of a dataset with true and predicted boxes, as a grid of tiles, into the PNG
/// file `out`.
///
/// # Errors
/// A damaged record, or a file that cannot be written.
pub fn draw(view: &View, out: &Path) -> Result<()> {
    register_built_in_font();
    let tiles = view.data.records.iter().map(|&i| tile(view, i)).collect::<Result<Vec<_>>>()?;
    let grid = TileGrid::new(&tiles);
    let (width, height) = grid.size;
    let mut pixels = grid.pixels();
    {
        let root = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        for (tile, (x, y)) in &grid.tiles {
            let name = shorten(&tile.name, tile.width as usize / CHARACTER);
            text(&root, &name, 12, (*x as i32, (y + TILE_HEIGHT + 2) as i32), WHITE)?;
        }
        legend(&root, (height - LEGEND) as i32, view.score)?;
        root.present().map_err(drawing_error)?;
    }
    save_png(out, width, height, &pixels)
}

/// Tiles in about as many rows as columns.
struct TileGrid<'a> {
    /// Tiles with the (x, y) of their upper left corners, pixels.
    tiles: Vec<(&'a Tile, (u32, u32))>,
    /// (width, height) of the whole picture, pixels.
    size: (u32, u32),
}

impl<'a> TileGrid<'a> {
    fn new(all: &'a [Tile]) -> Self {
        let columns = (all.len() as f64).sqrt().ceil() as usize;
        let (mut tiles, mut width, mut y) = (vec![], LEGEND_WIDTH, GAP);
        for row in all.chunks(columns) {
            let mut x = GAP;
            for tile in row {
                tiles.push((tile, (x, y)));
                x += tile.width + GAP;
            }
            width = width.max(x - GAP);
            y += ROW_HEIGHT;
        }
        Self { tiles, size: (width + GAP, y + LEGEND) }
    }

    /// The picture's RGB pixels: images on the background, without text.
    fn pixels(&self) -> Vec<u8> {
        let (width, height) = (self.size.0 as usize, self.size.1 as usize);
        let mut out = vec![BACKGROUND; width * height * 3];
        for (tile, (x, y)) in &self.tiles {
            for (line, pixels) in tile.pixels.chunks_exact(tile.width as usize * 3).enumerate() {
                let at = ((*y as usize + line) * width + *x as usize) * 3;
                out[at..at + pixels.len()].copy_from_slice(pixels);
            }
        }
        out
    }
}

/// The canvas.
type Root<'a> = DrawingArea<BitMapBackend<'a>, plotters::coord::Shift>;

/// Draws a text with its upper left corner at `at`.
fn text(root: &Root, text: &str, size: i32, at: (i32, i32), color: RGBColor) -> Result<()> {
    let style = TextStyle::from(("sans-serif", size).into_font()).color(&color);
    root.draw_text(text, &style, at).map_err(drawing_error)
}

/// Draws a frame that is visible on light and dark images: white with black on both sides.
fn truth_frame(root: &Root, corners: [(i32, i32); 2]) -> Result<()> {
    root.draw(&Rectangle::new(corners, BLACK.stroke_width(3))).map_err(drawing_error)?;
    root.draw(&Rectangle::new(corners, WHITE.stroke_width(1))).map_err(drawing_error)
}

/// Draws the legend, whose top is at `y`.
fn legend(root: &Root, y: i32, score: f32) -> Result<()> {
    let gap = GAP as i32;
    // On a light patch, so that the frame's black outline is visible.
    root.draw(&Rectangle::new(
        [(gap, y + 3), (gap + 36, y + 21)],
        RGBColor(150, 150, 150).filled(),
    ))
    .map_err(drawing_error)?;
    truth_frame(root, [(gap + 6, y + 7), (gap + 30, y + 17)])?;
    text(root, "ground truth", 14, (gap + 44, y + 4), WHITE)?;
    let x = gap + 160;
    for (i, color) in COLORS.iter().take(3).enumerate() {
        let left = x + 14 * i as i32;
        root.draw(&Rectangle::new([(left, y + 7), (left + 10, y + 17)], color.stroke_width(2)))
            .map_err(drawing_error)?;
    }
    text(
        root,
        &format!("prediction, coloured by class, score above {score}"),
        14,
        (x + 50, y + 4),
        WHITE,
    )
}

/// One image with its boxes.
struct Tile {
    /// Width, pixels.
    width: u32,
    /// RGB pixels, `TILE_HEIGHT` rows of `width`.
    pixels: Vec<u8>,
    /// File name of the image.
    name: String,
}

/// Runs the network on one record, and draws the record's image and boxes.
fn tile(view: &View, index: usize) -> Result<Tile> {
    let View { detector, data, input, eval, score } = *view;
    let (records, mut timings) = ([index], Timings::default());
    let detections =
        detect_records(detector, data, &records, (input, eval), Device::Cpu, &mut timings)?;
    let detections: Vec<_> = detections.into_iter().flatten().filter(|d| d.score > score).collect();
    let record = data.split.record(index)?;
    let image = record.decode()?;
    let scale = f64::from(TILE_HEIGHT) / image.height as f64;
    let size = (((image.width as f64 * scale) as u32).max(1), TILE_HEIGHT);
    let mut pixels = resize_nearest(&image, size.0 as usize, size.1 as usize);
    let original = record.entry.original();
    let scale =
        (f64::from(size.0) / f64::from(original.0), f64::from(size.1) / f64::from(original.1));
    {
        let root = BitMapBackend::with_buffer(&mut pixels, size).into_drawing_area();
        draw_truth(&root, &record.annotations.boxes, scale)?;
        draw_detections(&root, size, data, &detections, scale)?;
        root.present().map_err(drawing_error)?;
    }
    let name = shown(&record.annotations.file_name).to_string();
    Ok(Tile { width: size.0, pixels, name })
}

/// Corners in the tile of a box `[x1, y1, x2, y2]` in pixels of the original image.
fn corners([x1, y1, x2, y2]: [f64; 4], scale: (f64, f64)) -> [(i32, i32); 2] {
    let point = |x: f64, y: f64| ((x * scale.0) as i32, (y * scale.1) as i32);
    [point(x1, y1), point(x2, y2)]
}

/// Draws the true boxes, without crowds.
fn draw_truth(root: &Root, boxes: &[GtBox], scale: (f64, f64)) -> Result<()> {
    for b in boxes.iter().filter(|b| !b.crowd) {
        let [x, y, w, h] = b.bbox;
        truth_frame(root, corners([x, y, x + w, y + h], scale))?;
    }
    Ok(())
}

/// Draws detections, given by descending score, and their labels.
fn draw_detections(
    root: &Root,
    size: (u32, u32),
    data: &Dataset,
    detections: &[Detection],
    scale: (f64, f64),
) -> Result<()> {
    let corners = |d: &Detection| corners(d.bbox.map(f64::from), scale);
    // In reverse order, so that the highest scores are on top.
    for d in detections.iter().rev() {
        let frame = Rectangle::new(corners(d), color(d).stroke_width(2));
        root.draw(&frame).map_err(drawing_error)?;
    }
    let size = (size.0 as i32, size.1 as i32);
    let mut occupied = vec![];
    for d in detections {
        let name = shown(&data.categories()[d.label as usize].name).to_string();
        let name = shorten(&name, (size.0 as usize / CHARACTER).saturating_sub(5));
        let text = format!("{name} {:.2}", d.score);
        label(root, size, corners(d), color(d), &text, &mut occupied)?;
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
    occupied: &mut Vec<Area>,
) -> Result<()> {
    let style = TextStyle::from(("sans-serif", 13).into_font()).color(&BLACK);
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

/// Resizes RGB pixels with nearest-neighbour interpolation.
fn resize_nearest(image: &dw_shards::pixels::Rgb, width: usize, height: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        let row = &image.data[y * image.height / height * image.width * 3..];
        for x in 0..width {
            let at = x * image.width / width * 3;
            out.extend_from_slice(&row[at..at + 3]);
        }
    }
    out
}
