//! Weighting functions without a network: P_neg by IoU (Fig. 3 of the DW paper), and the weights of
//! four anchors under GFL, VFL and DW (after its Fig. 1).

use std::path::Path;

use plotters::backend::BitMapBackend;
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::Result;
use crate::assign::figures::functions::{p_neg, weighted};
use crate::show::{COLORS, drawing_error, register_built_in_font, save_png};

/// Size of the picture, pixels.
const SIZE: (u32, u32) = (1240, 480);
/// Exponents of the curves.
const GAMMAS: [f64; 5] = [0.5, 1.0, 2.0, 4.0, 8.0];
/// Score and IoU of the four anchors: consistently good, a high score on a poor box, a low score on
/// a good box, consistently poor.
const ANCHORS: [(f64, f64); 4] = [(0.9, 0.9), (0.9, 0.55), (0.3, 0.9), (0.2, 0.55)];
/// Colours of positive and negative weights.
const SIGNS: [RGBColor; 2] = [COLORS[6], COLORS[4]];

type Root<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

/// Draws both figures side by side into the PNG file `out`.
///
/// # Errors
/// A file that cannot be written.
pub fn draw(out: &Path) -> Result<()> {
    register_built_in_font();
    let mut pixels = vec![255u8; (SIZE.0 * SIZE.1 * 3) as usize];
    {
        let root = BitMapBackend::with_buffer(&mut pixels, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(drawing_error)?;
        let (left, right) = root.split_horizontally(520);
        curves(&left)?;
        bars(&right)?;
        root.present().map_err(drawing_error)?;
    }
    save_png(out, SIZE.0, SIZE.1, &pixels)
}

/// P_neg by IoU, a curve for each exponent.
fn curves(area: &Root) -> Result<()> {
    let mut chart = ChartBuilder::on(area)
        .caption("P_neg by IoU (Eq. 5), for gamma1", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d(0.4..1.0, 0.0..1.05)
        .map_err(drawing_error)?;
    chart
        .configure_mesh()
        .x_desc("IoU of predicted box and object")
        .y_desc("probability of being negative")
        .label_style(("sans-serif", 14))
        .light_line_style(WHITE)
        .draw()
        .map_err(drawing_error)?;
    // Without the palette's yellow, which is hard to see on white.
    let colors = [COLORS[0], COLORS[1], COLORS[2], COLORS[4], COLORS[6]];
    let iou: Vec<f64> = (0..=600).map(|i| 0.4 + f64::from(i) * 1e-3).collect();
    for (gamma, color) in GAMMAS.into_iter().zip(colors) {
        let values = p_neg(&iou, gamma)?;
        let line = LineSeries::new(iou.iter().copied().zip(values), color.stroke_width(2));
        let series = chart.draw_series(line).map_err(drawing_error)?;
        series
            .label(format!("gamma1 = {gamma}"))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    let mut labels = chart.configure_series_labels();
    let labels = labels.position(SeriesLabelPosition::LowerLeft).border_style(BLACK);
    labels.background_style(WHITE).label_font(("sans-serif", 14)).draw().map_err(drawing_error)
}

/// Bars of the anchors' weights, a chart for each function.
fn bars(area: &Root) -> Result<()> {
    let (title, charts) = area.split_vertically(38);
    let text = "weights of four anchors (s: score, U: IoU), relative to the largest";
    title
        .draw_text(text, &("sans-serif", 18).into_text_style(&title), (20, 12))
        .map_err(drawing_error)?;
    for (part, function) in charts.split_evenly((1, 3)).iter().zip(weighted(&ANCHORS)?) {
        let mut chart = ChartBuilder::on(part)
            .caption(function.name, ("sans-serif", 17))
            .margin(8)
            .x_label_area_size(64)
            .y_label_area_size(34)
            .build_cartesian_2d(0.0..ANCHORS.len() as f64, 0.0..1.1)
            .map_err(drawing_error)?;
        let mesh = |y: &f64| format!("{y:.1}");
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(0)
            .y_labels(6)
            .y_label_formatter(&mesh)
            .label_style(("sans-serif", 13))
            .light_line_style(WHITE)
            .draw()
            .map_err(drawing_error)?;
        for (sign, color) in SIGNS.into_iter().enumerate() {
            let left = |i: usize| i as f64 + 0.12 + 0.38 * sign as f64;
            let bar = |(i, w): (usize, &f64)| {
                Rectangle::new([(left(i), 0.0), (left(i) + 0.36, *w)], color.filled())
            };
            chart
                .draw_series(function.weights[sign].iter().enumerate().map(bar))
                .map_err(drawing_error)?;
        }
        for (i, (s, u)) in ANCHORS.into_iter().enumerate() {
            let (x, y) = chart.backend_coord(&(i as f64 + 0.15, 0.0));
            let base = part.get_base_pixel();
            let at = (x - base.0, y - base.1 + 6);
            let style = ("sans-serif", 13).into_text_style(part);
            part.draw_text(&format!("s {s}"), &style, at).map_err(drawing_error)?;
            part.draw_text(&format!("U {u}"), &style, (at.0, at.1 + 16)).map_err(drawing_error)?;
        }
        for (sign, name) in ["positive", "negative"].into_iter().enumerate() {
            let at = (44 + 92 * sign as i32, SIZE.1 as i32 - 38 - 22);
            let square = Rectangle::new([at, (at.0 + 11, at.1 + 11)], SIGNS[sign].filled());
            part.draw(&square).map_err(drawing_error)?;
            let style = ("sans-serif", 13).into_text_style(part);
            part.draw_text(name, &style, (at.0 + 16, at.1 - 1)).map_err(drawing_error)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_picture_is_drawn() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("w.png");
        super::draw(&file).unwrap();
        assert!(std::fs::metadata(file).unwrap().len() > 5000);
    }
}
