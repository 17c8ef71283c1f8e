//! Plots as SVG text. The page's stylesheet replaces these colours with those of its light or dark
//! scheme.

use std::ops::Range;
use std::sync::Once;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};

// Colours of Okabe and Ito, distinguishable with colour blindness.
pub(super) const BLUE: RGBColor = RGBColor(0, 114, 178);
pub(super) const ORANGE: RGBColor = RGBColor(213, 94, 0);
pub(super) const GREEN: RGBColor = RGBColor(0, 158, 115);
/// For secondary elements.
pub(super) const GREY: RGBColor = RGBColor(153, 153, 153);
/// Text and axes.
const INK: RGBColor = RGBColor(0, 0, 0);
/// Grid lines.
const GRID: RGBColor = RGBColor(221, 221, 221);

/// SVG units per pixel. More than one, because plotters rounds coordinates to integers.
const FINE: f64 = 4.0;

/// Converts pixels to units.
fn fine(pixels: f64) -> i32 {
    (pixels * FINE) as i32
}

/// Registers the built-in font, which plotters uses to measure text. The browser uses its own font.
fn font() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if register_font("sans-serif", FontStyle::Normal, epaint_default_fonts::HACK_REGULAR)
            .is_err()
        {
            tracing::warn!("cannot load the built-in font: plots have no text");
        }
    });
}

/// The axes of a plot.
pub(super) struct Axes<'a> {
    /// Text alternative of the plot.
    pub alt: &'a str,
    /// Range and name of the horizontal axis.
    pub x: (Range<f64>, &'a str),
    /// Range and name of the vertical axis.
    pub y: (Range<f64>, &'a str),
    /// Number of labels of the horizontal axis.
    pub x_labels: usize,
    /// Text of a label of the horizontal axis.
    pub x_text: &'a dyn Fn(f64) -> String,
}

/// A line.
pub(super) struct Line {
    /// Points in coordinates of the axes.
    pub points: Vec<(f64, f64)>,
    pub color: RGBColor,
    /// Whether the line is dashed.
    pub dashed: bool,
}

/// A rectangle, one segment of a stacked bar.
pub(super) struct Bar {
    /// Extent on the horizontal axis.
    pub x: Range<f64>,
    /// Extent on the vertical axis.
    pub y: Range<f64>,
    pub color: RGBColor,
}

/// Text in the plot, centred above a point.
pub(super) struct Note {
    pub at: (f64, f64),
    pub text: String,
}

/// A finished plot.
pub(super) struct Plot {
    /// `<svg>` element.
    pub svg: String,
    /// SVG coordinates of the axes' (0, 0) and (1, 1).
    pub frame: [(i32, i32); 2],
}

/// Error of plotters.
type DrawingError = DrawingAreaErrorKind<std::io::Error>;

/// Draws bars, then lines, then notes. If plotters fails, a warning is logged and the plot is
/// incomplete.
pub(super) fn plot(axes: &Axes, bars: &[Bar], lines: &[Line], notes: &[Note]) -> Plot {
    font();
    let (width, height) = (fine(520.0) as u32, fine(320.0) as u32);
    let mut svg = String::new();
    let frame = {
        let area = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
        draw(&area, axes, bars, lines, notes)
    };
    let frame = frame.unwrap_or_else(|e| {
        tracing::warn!("cannot draw a plot of the report: {e}");
        [(0, 0); 2]
    });
    Plot { svg: finish_svg(&svg, axes.alt, lines), frame }
}

/// Draws the plot; returns the coordinates of the axes' (0, 0) and (1, 1).
fn draw<B: DrawingBackend<ErrorType = std::io::Error>>(
    area: &DrawingArea<B, Shift>,
    axes: &Axes,
    bars: &[Bar],
    lines: &[Line],
    notes: &[Note],
) -> Result<[(i32, i32); 2], DrawingError> {
    let text = |size: f64| TextStyle::from(("sans-serif", fine(size)).into_font()).color(&INK);
    let mut chart = ChartBuilder::on(area)
        .margin(fine(6.0))
        .margin_right(fine(14.0))
        .margin_top(fine(10.0))
        .x_label_area_size(fine(38.0))
        .y_label_area_size(fine(50.0))
        .build_cartesian_2d(axes.x.0.clone(), axes.y.0.clone())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID.stroke_width(FINE as u32))
        .axis_style(INK.stroke_width(FINE as u32))
        .label_style(text(12.5))
        .axis_desc_style(text(13.5))
        .x_labels(axes.x_labels)
        .y_labels(6)
        .x_label_formatter(&|v| (axes.x_text)(*v))
        .y_label_formatter(&|v| super::format::short(*v))
        .x_desc(axes.x.1)
        .y_desc(axes.y.1)
        .draw()?;
    chart.draw_series(
        bars.iter().map(|b| {
            Rectangle::new([(b.x.start, b.y.start), (b.x.end, b.y.end)], b.color.filled())
        }),
    )?;
    for l in lines {
        chart.draw_series(LineSeries::new(
            l.points.iter().copied(),
            l.color.stroke_width(2 * FINE as u32),
        ))?;
    }
    let style = text(11.5).pos(Pos::new(HPos::Center, VPos::Bottom));
    chart.draw_series(notes.iter().map(|n| Text::new(n.text.clone(), n.at, style.clone())))?;
    area.present()?;
    let at = |p| chart.plotting_area().map_coordinate(&p);
    Ok([at((0.0, 0.0)), at((1.0, 1.0))])
}

/// Adds the text alternative, removes the fixed size, and adds classes to the lines.
fn finish_svg(svg: &str, alt: &str, lines: &[Line]) -> String {
    let Some(inner) = svg.find("viewBox").map(|i| &svg[i..]) else { return String::new() };
    let alt = askama::filters::escape(alt, askama::filters::Html)
        .map(|s| s.to_string())
        .unwrap_or_default();
    let mut out = String::with_capacity(svg.len() + 200);
    out.push_str("<svg role=\"img\" aria-label=\"");
    out.push_str(&alt);
    out.push_str("\" ");
    // The polylines of the axes come first.
    let drawn = lines.iter().filter(|l| !l.points.is_empty());
    let skip = inner.matches("<polyline").count().saturating_sub(drawn.clone().count());
    let mut rest = inner;
    for (i, dashed) in
        std::iter::repeat_n(None, skip).chain(drawn.map(|l| Some(l.dashed))).enumerate()
    {
        let Some(at) = rest.find("<polyline").map(|p| p + "<polyline".len()) else { break };
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        match dashed {
            Some(true) => out.push_str(" class=\"series dashed\""),
            Some(false) => out.push_str(" class=\"series\""),
            None => debug_assert!(i < skip),
        }
    }
    out.push_str(rest);
    out
}

/// `n` evenly spaced hues from blue through violet to orange, legible on white and on black.
pub(super) fn ramp(n: usize) -> Vec<RGBColor> {
    let tone = |i: usize| {
        let hue = (0.60 + 0.48 * i as f64 / n.max(2).saturating_sub(1) as f64) % 1.0;
        let (r, g, b) = HSLColor(hue, 0.68, 0.54).rgb();
        RGBColor(r, g, b)
    };
    (0..n).map(tone).collect()
}

/// A colour as `#RRGGBB`.
pub(super) fn hex(c: RGBColor) -> String {
    format!("#{:02X}{:02X}{:02X}", c.0, c.1, c.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn svg_is_one_element_with_text_alternative_and_line_classes() {
        let axes = Axes {
            alt: "a <b>",
            x: (0.0..1.0, "x"),
            y: (0.0..1.0, "y"),
            x_labels: 6,
            x_text: &super::super::format::short,
        };
        let line =
            |dashed| Line { points: vec![(0.0, 0.0), (0.5, 0.4), (1.0, 1.0)], color: BLUE, dashed };
        let p = plot(
            &axes,
            &[Bar { x: 0.0..0.5, y: 0.0..0.5, color: GREEN }],
            &[line(false), line(true)],
            &[],
        );
        assert!(
            p.svg.starts_with("<svg role=\"img\" aria-label=\"a &#60;b&#62;\" viewBox=")
                || p.svg.contains("a &lt;b"),
            "{}",
            &p.svg[..99]
        );
        assert_eq!(
            (
                p.svg.matches("class=\"series\"").count(),
                p.svg.matches("class=\"series dashed\"").count()
            ),
            (1, 1)
        );
        assert_eq!(p.svg.matches("<svg").count(), 1);
        assert!(p.svg.trim_end().ends_with("</svg>"));
        assert!(p.frame[0].0 < p.frame[1].0 && p.frame[0].1 > p.frame[1].1);
    }

    #[test]
    fn an_empty_plot_has_no_series() {
        let axes = Axes {
            alt: "",
            x: (0.0..1.0, ""),
            y: (0.0..1.0, ""),
            x_labels: 6,
            x_text: &super::super::format::short,
        };
        let p = plot(&axes, &[], &[Line { points: vec![], color: BLUE, dashed: true }], &[]);
        assert!(!p.svg.contains("series"));
    }
}
