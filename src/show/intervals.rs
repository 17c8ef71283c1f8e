//! Plot of means with their intervals, one row each.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{COLORS, drawing_error, register_built_in_font};
use crate::Result;

/// Width of the plot, pixels.
const WIDTH: u32 = 900;
/// Height of a row, pixels.
const ROW: u32 = 34;
/// Height of title and axis, pixels.
const FRAME: u32 = 86;
/// Width of the titles of the rows, pixels.
const TITLES: u32 = 250;
/// Light grey for the reference line.
const GREY: RGBColor = RGBColor(150, 150, 150);

/// A row of a panel.
#[derive(Debug, Clone, PartialEq)]
pub struct Interval {
    /// Name of the row.
    pub title: String,
    /// Individual values, drawn as small circles.
    pub values: Vec<f64>,
    /// Their mean.
    pub mean: f64,
    /// Half the width of its interval.
    pub half: Option<f64>,
}

/// Draws rows as one panel of an SVG image: `reference` is the position of a vertical line,
/// `x_name` the name of the horizontal axis.
///
/// # Errors
/// The plot cannot be drawn.
pub fn panel(
    title: &str,
    x_name: &str,
    rows: &[Interval],
    reference: Option<f64>,
) -> Result<String> {
    register_built_in_font();
    let height = FRAME + ROW * rows.len() as u32;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE).map_err(drawing_error)?;
        let count = rows.len() as f64;
        let (low, high) = range(rows, reference);
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 18))
            .margin(8)
            .margin_right(20)
            .x_label_area_size(40)
            .y_label_area_size(TITLES)
            .build_cartesian_2d(low..high, count..0.0)
            .map_err(drawing_error)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .y_labels(0)
            .x_desc(x_name)
            .label_style(("sans-serif", 13))
            .axis_desc_style(("sans-serif", 14))
            .light_line_style(TRANSPARENT)
            .draw()
            .map_err(drawing_error)?;
        if let Some(at) = reference {
            chart
                .draw_series(LineSeries::new([(at, 0.0), (at, count)], GREY.stroke_width(2)))
                .map_err(drawing_error)?;
        }
        for (i, row) in rows.iter().enumerate() {
            draw_row(&mut chart, row, i as f64 + 0.5)?;
            let y = chart.backend_coord(&(low, i as f64 + 0.5)).1;
            let style =
                TextStyle::from(("sans-serif", 14)).pos(Pos::new(HPos::Right, VPos::Center));
            root.draw_text(&row.title, &style, (TITLES as i32, y)).map_err(drawing_error)?;
        }
        root.present().map_err(drawing_error)?;
    }
    Ok(svg)
}

/// The range of the horizontal axis: all values, intervals and the reference, with a margin.
fn range(rows: &[Interval], reference: Option<f64>) -> (f64, f64) {
    let ends = |r: &Interval| {
        let half = r.half.unwrap_or(0.0);
        let mut all = r.values.clone();
        all.extend([r.mean - half, r.mean + half]);
        all
    };
    let all: Vec<f64> = rows.iter().flat_map(ends).chain(reference).collect();
    let low = all.iter().copied().fold(f64::INFINITY, f64::min);
    let high = all.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let margin = ((high - low) * 0.05).max(1e-3);
    if low.is_finite() && high.is_finite() { (low - margin, high + margin) } else { (0.0, 1.0) }
}

type Chart<'a> = ChartContext<
    'a,
    SVGBackend<'a>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;

/// Draws the individual values, the interval and the mean at height `y`.
fn draw_row(chart: &mut Chart, row: &Interval, y: f64) -> Result<()> {
    let color = COLORS[6];
    if let Some(half) = row.half {
        let (low, high) = (row.mean - half, row.mean + half);
        let line = [(low, y), (high, y)];
        let bars = [low, high].map(|x| vec![(x, y - 0.16), (x, y + 0.16)]);
        for points in [line.to_vec()].into_iter().chain(bars) {
            chart
                .draw_series(LineSeries::new(points, color.stroke_width(2)))
                .map_err(drawing_error)?;
        }
    }
    let single = row.values.iter().map(|v| Circle::new((*v, y), 3, COLORS[4].stroke_width(1)));
    chart.draw_series(single).map_err(drawing_error)?;
    let mean = Circle::new((row.mean, y), 5, color.filled());
    chart.draw_series([mean]).map_err(drawing_error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panel_names_its_rows_and_spans_their_intervals() {
        let row = |title: &str, mean: f64| Interval {
            title: title.into(),
            values: vec![mean - 1.0, mean + 1.0],
            mean,
            half: Some(4.0),
        };
        let rows = [row("P × I", 20.0), row("none <b>", 10.0)];
        let (low, high) = range(&rows, Some(0.0));
        assert!((low + 1.2).abs() < 1e-9 && (high - 25.2).abs() < 1e-9, "{low} to {high}");
        let svg = panel("AP", "AP, percent", &rows, None).unwrap();
        assert!(svg.contains("P × I") && svg.contains("none &lt;b&gt;"), "{svg}");
        assert_eq!(range(&[], None), (0.0, 1.0));
    }
}
