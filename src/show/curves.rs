//! Plots of loss and AP over the steps of a run.

use std::path::Path;

use plotters::backend::BitMapBackend;
use plotters::prelude::*;
use serde_json::{Map, Value};

use super::{COLORS, drawing_error, register_built_in_font, save_png};
use crate::train::log::jsonl;
use crate::{Error, Result};

/// Width of the plot, pixels.
const WIDTH: u32 = 1000;
/// Height of the plot, pixels.
const HEIGHT: u32 = 720;

/// Lines of a plot: each a name and its points (step, value).
type Series = Vec<(String, Vec<(f64, f64)>)>;

/// Plots the metrics of a run to the PNG file `out`. `run`: a `metrics.jsonl` or a work directory.
///
/// # Errors
/// A metrics file that is missing, damaged or without any step, or an output that cannot be
/// written.
pub fn draw(run: &Path, out: &Path) -> Result<()> {
    let file = if run.is_dir() { run.join(jsonl::NAME) } else { run.to_owned() };
    let rows = jsonl::read(&file)?;
    // The terms of the loss depend on the strategy; they are plotted in the order of the rows.
    let is_loss = |name: &&String| *name == "loss" || name.starts_with("loss_");
    let names: Vec<&str> = rows
        .iter()
        .find(|r| r.contains_key("loss"))
        .into_iter()
        .flat_map(|r| r.keys().filter(is_loss))
        .map(String::as_str)
        .collect();
    let losses = series(&rows, &names);
    if losses.iter().all(|s| s.1.is_empty()) {
        return Err(Error::data(&file, "", "expected at least one row with a loss, found none"));
    }
    let mut aps = series(&rows, &["AP", "AP50", "AP75"]);
    // An undefined AP is -1.
    for (_, points) in &mut aps {
        points.retain(|(_, ap)| *ap >= 0.0);
    }
    let last =
        losses.iter().chain(&aps).filter_map(|s| s.1.last()).map(|p| p.0).fold(1.0, f64::max);
    register_built_in_font();
    let mut pixels = vec![255u8; (WIDTH * HEIGHT * 3) as usize];
    {
        let root = BitMapBackend::with_buffer(&mut pixels, (WIDTH, HEIGHT)).into_drawing_area();
        root.fill(&WHITE).map_err(drawing_error)?;
        let (top, bottom) = root.split_vertically(HEIGHT * 6 / 10);
        let max_loss = losses.iter().flat_map(|s| smooth(&s.1)).map(|p| p.1).fold(0.0, f64::max);
        panel(
            &top,
            "loss (running mean)",
            &losses.iter().map(|(n, p)| (n.clone(), smooth(p))).collect(),
            (last, max_loss * 1.05),
            8,
        )?;
        // Labels from 0 to 1 in tenths.
        panel(&bottom, "AP on the validation split", &aps, (last, 1.0), 11)?;
        root.present().map_err(drawing_error)?;
    }
    save_png(out, WIDTH, HEIGHT, &pixels)
}

/// The values of the named fields over the steps; the last value if a step is repeated.
fn series(rows: &[Map<String, Value>], names: &[&str]) -> Series {
    names
        .iter()
        .map(|name| {
            let mut points = std::collections::BTreeMap::new();
            for row in rows {
                if let (Some(step), Some(v)) = (
                    row.get("step").and_then(Value::as_u64),
                    row.get(*name).and_then(Value::as_f64),
                ) {
                    points.insert(step, v);
                }
            }
            ((*name).to_owned(), points.into_iter().map(|(s, v)| (s as f64, v)).collect())
        })
        .collect()
}

/// Running mean with a window of one fiftieth of the points.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let half = points.len() / 100;
    (0..points.len())
        .map(|i| {
            let window = &points[i.saturating_sub(half)..(i + half + 1).min(points.len())];
            (points[i].0, window.iter().map(|p| p.1).sum::<f64>() / window.len() as f64)
        })
        .collect()
}

/// Draws one chart: `lines` over the steps up to `last`, y from 0 to `top` with about `labels`
/// labels.
fn panel(
    area: &DrawingArea<BitMapBackend, plotters::coord::Shift>,
    title: &str,
    lines: &Series,
    (last, top): (f64, f64),
    labels: usize,
) -> Result<()> {
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 20))
        .margin(10)
        .x_label_area_size(35)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..last * 1.02, 0.0..top.max(1e-3))
        .map_err(drawing_error)?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_labels(labels)
        .y_label_formatter(&|y| format!("{y:.0$}", if top < 0.8 { 2 } else { 1 }))
        .x_label_formatter(&|x| format!("{x:.0}"))
        .label_style(("sans-serif", 14))
        .light_line_style(WHITE)
        .draw()
        .map_err(drawing_error)?;
    for (i, (name, points)) in lines.iter().enumerate().filter(|(_, s)| !s.1.is_empty()) {
        // Without the palette's yellow, which is hard to see on white.
        let color = [COLORS[6], COLORS[4], COLORS[2], COLORS[5]][i % 4];
        let label = format!("{name} {:.3}", points[points.len() - 1].1);
        chart
            .draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))
            .map_err(drawing_error)?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        chart
            .draw_series(
                points
                    .iter()
                    .take(if points.len() < 50 { 50 } else { 0 })
                    .map(|p| Circle::new(*p, 3, color.filled())),
            )
            .map_err(drawing_error)?;
    }
    if lines.iter().any(|s| !s.1.is_empty()) {
        // Losses fall and AP rises: these corners are usually free.
        let corner = if title.starts_with("loss") {
            SeriesLabelPosition::UpperRight
        } else {
            SeriesLabelPosition::LowerRight
        };
        let mut labels = chart.configure_series_labels();
        let labels = labels.position(corner).background_style(WHITE.mix(0.85)).border_style(BLACK);
        labels.label_font(("sans-serif", 14)).draw().map_err(drawing_error)?;
    }
    Ok(())
}
