//! Images with true boxes (thin, white) and predicted boxes (in the class's colour, with name and score).

use std::path::Path;

use plotters::backend::BitMapBackend;
use plotters::prelude::*;
use tch::Device;

use super::{COLORS, failed, font, save_png};
use crate::app;
use crate::config::Config;
use crate::data::Dataset;
use crate::error::Result;
use crate::eval::detect;
use crate::eval::infer::{Spent, detect_records};
use crate::model::Detector;

/// Height of a picture in the sheet, pixels.
const CELL: f64 = 320.0;
/// Space around pictures.
const GAP: u32 = 6;
/// Height of the legend.
const LEGEND: u32 = 26;

/// What to draw.
#[derive(Debug)]
pub struct Options {
    /// Number of images.
    pub count: usize,
    /// Smallest score drawn.
    pub score: f32,
    /// Configuration of a weight file.
    pub config: Option<String>,
}

/// Draws the first images of the checkpoint's validation split (or of `data` / `split`) into a PNG file.
///
/// # Errors
/// A damaged checkpoint or record, a file that cannot be written.
pub fn draw(checkpoint: &Path, data: Option<&Path>, split: Option<&str>, o: &Options, out: &Path) -> Result<()> {
    let saved = app::Saved::find(checkpoint, o.config.as_deref(), &[])?;
    let mut config = saved.config.clone();
    if let Some(d) = data {
        d.clone_into(&mut config.data.shards);
    }
    if let Some(s) = split {
        s.clone_into(&mut config.data.val_split);
    }
    let data = Dataset::open(&config.data.shards, &config.data.val_split, o.count, false)?;
    let detector = saved.detector(&data, Device::Cpu)?;
    font();
    let cells = data.records.iter().map(|&i| cell(&detector, &data, i, &config, o)).collect::<Result<Vec<_>>>()?;
    let columns = (cells.len() as f64).sqrt().ceil() as usize;
    let rows: Vec<&[Cell]> = cells.chunks(columns).collect();
    let width = rows.iter().map(|r| r.iter().map(|c| c.width + GAP).sum::<u32>()).max().unwrap_or(0) + GAP;
    let height = rows.len() as u32 * (CELL as u32 + GAP) + GAP + LEGEND;
    let mut sheet = vec![24u8; (width * height * 3) as usize];
    for (r, row) in rows.iter().enumerate() {
        let (mut x, y) = (GAP, GAP + r as u32 * (CELL as u32 + GAP));
        for c in *row {
            for (line, pixels) in c.pixels.chunks_exact(c.width as usize * 3).enumerate() {
                let at = ((y as usize + line) * width as usize + x as usize) * 3;
                sheet[at..at + pixels.len()].copy_from_slice(pixels);
            }
            x += c.width + GAP;
        }
    }
    {
        let root = BitMapBackend::with_buffer(&mut sheet, (width, height)).into_drawing_area();
        let text = format!("white: ground truth   colour: prediction, score above {}", o.score);
        let style = TextStyle::from(("sans-serif", 14).into_font()).color(&WHITE);
        root.draw_text(&text, &style, (GAP as i32, (height - LEGEND + 5) as i32)).map_err(failed)?;
        root.present().map_err(failed)?;
    }
    save_png(out, width, height, &sheet)
}

/// One finished picture.
struct Cell {
    width: u32,
    pixels: Vec<u8>,
}

fn cell(detector: &Detector, data: &Dataset, index: usize, config: &Config, o: &Options) -> Result<Cell> {
    let found = detect_records(detector, data, &[index], config, Device::Cpu, &mut Spent::default())?.remove(0);
    let record = data.split.record(index)?;
    let image = record.decode()?;
    let scale = CELL / image.height as f64;
    let (width, height) = (((image.width as f64 * scale) as u32).max(1), CELL as u32);
    let mut pixels = nearest(&image, width as usize, height as usize);
    let point = |x: f64, y: f64| ((x * scale) as i32, (y * scale) as i32);
    {
        let root = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        for b in record.annotations.boxes.iter().filter(|b| !b.crowd) {
            let [x, y, w, h] = b.bbox;
            root.draw(&Rectangle::new([point(x, y), point(x + w, y + h)], WHITE.stroke_width(1))).map_err(failed)?;
        }
        for d in found.iter().rev().filter(|d| d.score > o.score) {
            let color = COLORS[d.label as usize % COLORS.len()];
            let detect::Box { bbox: [x1, y1, x2, y2], score, label } = *d;
            let corner = point(f64::from(x1), f64::from(y1));
            root.draw(&Rectangle::new([corner, point(f64::from(x2), f64::from(y2))], color.stroke_width(2))).map_err(failed)?;
            let text = format!("{} {score:.2}", data.categories()[label as usize].name);
            let style = TextStyle::from(("sans-serif", 13).into_font()).color(&BLACK);
            let (tw, th) = root.estimate_text_size(&text, &style).map_err(failed)?;
            let top = (corner.0.min(width as i32 - tw as i32 - 2).max(0), (corner.1 - th as i32 - 3).max(0));
            let plate = [top, (top.0 + tw as i32 + 2, top.1 + th as i32 + 3)];
            root.draw(&Rectangle::new(plate, color.filled())).map_err(failed)?;
            root.draw_text(&text, &style, (top.0 + 1, top.1 + 1)).map_err(failed)?;
        }
        root.present().map_err(failed)?;
    }
    Ok(Cell { width, pixels })
}

fn nearest(image: &dw_shards::pixels::Rgb, width: usize, height: usize) -> Vec<u8> {
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
