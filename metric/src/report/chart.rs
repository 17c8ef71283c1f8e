//! Plots as SVG text. Colours are fixed names for the page's stylesheet, which gives them their light and dark tones.

use std::ops::Range;
use std::sync::Once;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Colours of Okabe and Ito, told apart by most colour-blind eyes.
pub(super) const BLUE: RGBColor = RGBColor(0, 114, 178);
pub(super) const ORANGE: RGBColor = RGBColor(213, 94, 0);
pub(super) const GREEN: RGBColor = RGBColor(0, 158, 115);
/// For what is of less weight.
pub(super) const GREY: RGBColor = RGBColor(153, 153, 153);
/// Text and axes; the stylesheet replaces it by the page's own.
const INK: RGBColor = RGBColor(0, 0, 0);
const GRID: RGBColor = RGBColor(221, 221, 221);

/// Units a pixel: the library writes whole numbers only.
const FINE: f64 = 4.0;

fn fine(pixels: f64) -> i32 {
    (pixels * FINE) as i32
}

/// Makes the compiled-in font known to the plotting library, which measures text with it; the reader's browser draws it.
fn font() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if register_font("sans-serif", FontStyle::Normal, epaint_default_fonts::HACK_REGULAR)
            .is_err()
        {
            tracing::warn!("the built-in font cannot be read: plots have no text");
        }
    });
}

/// Two axes.
pub(super) struct Axes<'a> {
    /// What it shows, for those who cannot see it.
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
    /// Where it goes.
    pub points: Vec<(f64, f64)>,
    /// Its colour.
    pub color: RGBColor,
    /// Drawn broken.
    pub dashed: bool,
}

/// Part of a bar.
pub(super) struct Bar {
    /// From and to, on the horizontal axis.
    pub x: Range<f64>,
    /// From and to, on the vertical axis.
    pub y: Range<f64>,
    /// Its colour.
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
    /// Where (0, 0) and (1, 1) of the axes lie in it.
    pub frame: [(i32, i32); 2],
}

type Failed = DrawingAreaErrorKind<std::io::Error>;

/// Draws bars, then lines, then notes; an empty `svg` if the library fails.
pub(super) fn plot(axes: &Axes, bars: &[Bar], lines: &[Line], notes: &[Note]) -> Plot {
    font();
    let (width, height) = (fine(520.0) as u32, fine(320.0) as u32);
    let mut svg = String::new();
    let frame = {
        let area = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
        draw(&area, axes, bars, lines, notes)
    };
    let frame = frame.unwrap_or_else(|e| {
        tracing::warn!("a plot of the report is missing: {e}");
        [(0, 0); 2]
    });
    Plot { svg: dress(&svg, axes.alt, lines), frame }
}

fn draw<B: DrawingBackend<ErrorType = std::io::Error>>(
    area: &DrawingArea<B, Shift>,
    axes: &Axes,
    bars: &[Bar],
    lines: &[Line],
    notes: &[Note],
) -> Result<[(i32, i32); 2], Failed> {
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

/// Gives the element a name, lets it take its container's width, and marks broken lines.
fn dress(svg: &str, alt: &str, lines: &[Line]) -> String {
    let Some(inner) = svg.find("viewBox").map(|i| &svg[i..]) else { return String::new() };
    let alt = askama::filters::escape(alt, askama::filters::Html)
        .map(|s| s.to_string())
        .unwrap_or_default();
    let mut out = String::with_capacity(svg.len() + 200);
    out.push_str("<svg role=\"img\" aria-label=\"");
    out.push_str(&alt);
    out.push_str("\" ");
    // The lines are the last ones that are drawn.
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

/// `n` tones that go evenly from blue over violet to orange, legible on white and on black.
pub(super) fn ramp(n: usize) -> Vec<RGBColor> {
    let tone = |i: usize| {
        let hue = (0.60 + 0.48 * i as f64 / n.max(2).saturating_sub(1) as f64) % 1.0;
        let (r, g, b) = HSLColor(hue, 0.68, 0.54).rgb();
        RGBColor(r, g, b)
    };
    (0..n).map(tone).collect()
}

/// `#rrggbb`
pub(super) fn hex(c: RGBColor) -> String {
    format!("#{:02X}{:02X}{:02X}", c.0, c.1, c.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lines_and_is_one_element() {
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
    fn a_plot_of_nothing() {
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
