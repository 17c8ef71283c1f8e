//! Images with true boxes (white with a black edge) and predicted boxes (in the class's colour, with name and score).

use std::path::Path;

use dw_base::text::shown;
use plotters::backend::BitMapBackend;
use plotters::prelude::*;
use tch::Device;

use super::labels::{Area, place, shorten};
use super::{COLORS, failed, font, save_png};
use crate::app;
use crate::config::Config;
use crate::data::Dataset;
use crate::data::dataset::choose_split;
use crate::Result;
use crate::eval::detect;
use crate::eval::infer::{Spent, detect_records};
use crate::model::Detector;

/// Height of a picture in the sheet, pixels.
const CELL: f64 = 320.0;
/// Space around pictures.
const GAP: u32 = 6;
/// Height of the name below a picture, and of the legend.
const CAPTION: u32 = 18;
const LEGEND: u32 = 26;
/// Width that the legend needs.
const LEGEND_WIDTH: u32 = 560;
/// Width of a letter of names, about.
const LETTER: usize = 8;
const BACKGROUND: u8 = 24;

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
pub fn draw(
    checkpoint: &Path,
    data: Option<&Path>,
    split: Option<&str>,
    o: &Options,
    out: &Path,
) -> Result<()> {
    let saved = app::Saved::find(checkpoint, o.config.as_deref(), &[])?;
    let mut config = saved.config.clone();
    if let Some(d) = data {
        d.clone_into(&mut config.data.shards);
    }
    if let Some(s) = split {
        s.clone_into(&mut config.data.val_split);
    }
    let d = &config.data;
    let split = choose_split(&d.shards, &d.val_split, "val2017", "val", "data.val_split")?;
    let data = Dataset::open(&d.shards, &split, o.count, false)?;
    let detector = saved.detector(&data, Device::Cpu)?;
    font();
    let cells = data
        .records
        .iter()
        .map(|&i| cell(&detector, &data, i, &config, o))
        .collect::<Result<Vec<_>>>()?;
    let columns = (cells.len() as f64).sqrt().ceil() as usize;
    let rows: Vec<&[Cell]> = cells.chunks(columns).collect();
    let width = rows
        .iter()
        .map(|r| r.iter().map(|c| c.width + GAP).sum::<u32>())
        .max()
        .unwrap_or(0)
        .max(LEGEND_WIDTH)
        + GAP;
    let row_height = CELL as u32 + CAPTION + GAP;
    let height = rows.len() as u32 * row_height + GAP + LEGEND;
    let mut sheet = vec![BACKGROUND; (width * height * 3) as usize];
    for (r, row) in rows.iter().enumerate() {
        let (mut x, y) = (GAP, GAP + r as u32 * row_height);
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
        for (r, row) in rows.iter().enumerate() {
            let y = GAP + r as u32 * row_height + CELL as u32 + 2;
            let mut x = GAP;
            for c in *row {
                text(
                    &root,
                    &shorten(&c.name, c.width as usize / LETTER),
                    12,
                    (x as i32, y as i32),
                    WHITE,
                )?;
                x += c.width + GAP;
            }
        }
        legend(&root, (height - LEGEND) as i32, o.score)?;
        root.present().map_err(failed)?;
    }
    save_png(out, width, height, &sheet)
}

type Root<'a> = DrawingArea<BitMapBackend<'a>, plotters::coord::Shift>;

fn text(root: &Root, text: &str, size: i32, at: (i32, i32), color: RGBColor) -> Result<()> {
    let style = TextStyle::from(("sans-serif", size).into_font()).color(&color);
    root.draw_text(text, &style, at).map_err(failed)
}

/// A frame that can be seen on light and on dark: white with black on both sides.
fn truth_frame(root: &Root, corners: [(i32, i32); 2]) -> Result<()> {
    root.draw(&Rectangle::new(corners, BLACK.stroke_width(3))).map_err(failed)?;
    root.draw(&Rectangle::new(corners, WHITE.stroke_width(1))).map_err(failed)
}

fn legend(root: &Root, y: i32, score: f32) -> Result<()> {
    let gap = GAP as i32;
    // On light, so that the frame's black edge shows as it does in a picture.
    root.draw(&Rectangle::new(
        [(gap, y + 3), (gap + 36, y + 21)],
        RGBColor(150, 150, 150).filled(),
    ))
    .map_err(failed)?;
    truth_frame(root, [(gap + 6, y + 7), (gap + 30, y + 17)])?;
    text(root, "ground truth", 14, (gap + 44, y + 4), WHITE)?;
    let x = gap + 160;
    for (i, color) in COLORS.iter().take(3).enumerate() {
        let left = x + 14 * i as i32;
        root.draw(&Rectangle::new([(left, y + 7), (left + 10, y + 17)], color.stroke_width(2)))
            .map_err(failed)?;
    }
    text(
        root,
        &format!("prediction, a colour a class, score above {score}"),
        14,
        (x + 50, y + 4),
        WHITE,
    )
}

/// One finished picture.
struct Cell {
    width: u32,
    pixels: Vec<u8>,
    name: String,
}

fn cell(
    detector: &Detector,
    data: &Dataset,
    index: usize,
    config: &Config,
    o: &Options,
) -> Result<Cell> {
    let found =
        detect_records(detector, data, &[index], config, Device::Cpu, &mut Spent::default())?
            .remove(0);
    let record = data.split.record(index)?;
    let image = record.decode()?;
    let scale = CELL / image.height as f64;
    let (width, height) = (((image.width as f64 * scale) as u32).max(1), CELL as u32);
    let mut pixels = nearest(&image, width as usize, height as usize);
    let original = record.entry.original();
    let (sx, sy) =
        (f64::from(width) / f64::from(original.0), f64::from(height) / f64::from(original.1));
    let point = |x: f64, y: f64| ((x * sx) as i32, (y * sy) as i32);
    let found: Vec<_> = found.into_iter().filter(|d| d.score > o.score).collect();
    {
        let root = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        for b in record.annotations.boxes.iter().filter(|b| !b.crowd) {
            let [x, y, w, h] = b.bbox;
            truth_frame(&root, [point(x, y), point(x + w, y + h)])?;
        }
        let corners = |d: &detect::Box| {
            let [x1, y1, x2, y2] = d.bbox.map(f64::from);
            [point(x1, y1), point(x2, y2)]
        };
        // The best on top.
        for d in found.iter().rev() {
            root.draw(&Rectangle::new(corners(d), color(d).stroke_width(2))).map_err(failed)?;
        }
        let mut taken = vec![];
        for d in &found {
            let name = &data.categories()[d.label as usize].name;
            label(
                &root,
                (width as i32, height as i32),
                corners(d),
                color(d),
                name,
                d.score,
                &mut taken,
            )?;
        }
        root.present().map_err(failed)?;
    }
    Ok(Cell { width, pixels, name: shown(&record.annotations.file_name).to_string() })
}

fn color(d: &detect::Box) -> RGBColor {
    COLORS[d.label as usize % COLORS.len()]
}

/// Draws a box's name and score on a plate of its colour, on no other plate; a line leads to the box where the plate
/// had to go elsewhere.
fn label(
    root: &Root,
    picture: (i32, i32),
    corners: [(i32, i32); 2],
    color: RGBColor,
    name: &str,
    score: f32,
    taken: &mut Vec<Area>,
) -> Result<()> {
    let most = (picture.0 as usize / LETTER).saturating_sub(5);
    let words = format!("{} {score:.2}", shorten(&shown(name).to_string(), most));
    let style = TextStyle::from(("sans-serif", 13).into_font()).color(&BLACK);
    let (tw, th) = root.estimate_text_size(&words, &style).map_err(failed)?;
    let [(x, y), (x2, y2)] = corners;
    let target = Area { x, y, w: x2 - x, h: y2 - y };
    let Some(plate) = place((tw as i32 + 3, th as i32 + 3), &target, picture, taken) else {
        return Ok(());
    };
    let touches =
        plate.x <= x2 && x <= plate.x + plate.w && plate.y <= y2 && y <= plate.y + plate.h;
    if !touches {
        let from = (plate.x + plate.w / 2, plate.y + plate.h / 2);
        root.draw(&PathElement::new([from, (x, y)], color.stroke_width(1))).map_err(failed)?;
    }
    let area = [(plate.x, plate.y), (plate.x + plate.w - 1, plate.y + plate.h - 1)];
    root.draw(&Rectangle::new(area, color.filled())).map_err(failed)?;
    root.draw_text(&words, &style, (plate.x + 1, plate.y + 1)).map_err(failed)?;
    taken.push(plate);
    Ok(())
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
