//! Images with their true boxes (white with a black outline) and predicted boxes (colour of the
//! class, with class name and score).

use std::path::Path;

use dw_base::text::shown;
use dw_shards::format::GtBox;
use plotters::backend::BitMapBackend;
use plotters::prelude::*;
use tch::Device;

use super::boxes::{CHARACTER, Root, Style, corners, draw_detections, text};
use super::labels::shorten;
use super::{COLORS, drawing_error, register_built_in_font, save_png};
use crate::Result;
use crate::data::{DataConfig, Dataset};
use crate::eval::EvalConfig;
use crate::eval::infer::{Timings, detect_records};
use crate::model::Detector;

/// Height of a tile's image, pixels.
const TILE_HEIGHT: u32 = 320;
/// Largest width of an image, pixels: wider ones are lower than a tile.
const MAX_TILE_WIDTH: u32 = 4 * TILE_HEIGHT;
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
    /// Detections with a lower score are not drawn.
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
        &format!("prediction, coloured by class, score {score} or more"),
        14,
        (x + 50, y + 4),
        WHITE,
    )
}

/// One image with its boxes.
struct Tile {
    /// Width, pixels.
    width: u32,
    /// RGB pixels, at most `TILE_HEIGHT` rows of `width`.
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
    let detections: Vec<_> =
        detections.into_iter().flatten().filter(|d| d.score >= score).collect();
    let record = data.split.record(index)?;
    let image = record.decode()?;
    let (width, height) = (image.width as f64, image.height as f64);
    let scale = (f64::from(TILE_HEIGHT) / height).min(f64::from(MAX_TILE_WIDTH) / width);
    let size = (((width * scale) as u32).max(1), ((height * scale) as u32).max(1));
    let mut pixels = resize_nearest(&image, size.0 as usize, size.1 as usize);
    let original = record.entry.original();
    let scale =
        (f64::from(size.0) / f64::from(original.0), f64::from(size.1) / f64::from(original.1));
    {
        let root = BitMapBackend::with_buffer(&mut pixels, size).into_drawing_area();
        draw_truth(&root, &record.annotations.boxes, scale)?;
        draw_detections(&root, size, data.categories(), &detections, scale, Style::SMALL)?;
        root.present().map_err(drawing_error)?;
    }
    let name = shown(&record.annotations.file_name).to_string();
    Ok(Tile { width: size.0, pixels, name })
}

/// Draws the true boxes, without crowds.
fn draw_truth(root: &Root, boxes: &[GtBox], scale: (f64, f64)) -> Result<()> {
    for b in boxes.iter().filter(|b| !b.crowd) {
        let [x, y, w, h] = b.bbox;
        truth_frame(root, corners([x, y, x + w, y + h], scale))?;
    }
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
