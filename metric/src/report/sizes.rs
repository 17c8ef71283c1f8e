//! Histogram of the ground truth by size, found and missed.

use super::chart::{Axes, BLUE, Bar, GREY, Line, Note, ORANGE, plot};
use super::figure::{Figure, Key};
use super::format::{NONE, short};
use super::run::Run;
use super::table::{Table, columns};
use crate::analysis::size::{SizeBin, borders};
use crate::coco::config::Area;

/// `part` as a percentage of the bin.
fn percent(part: usize, b: &SizeBin) -> String {
    if b.total() == 0 {
        NONE.into()
    } else {
        format!("{:.0}%", part as f64 / b.total() as f64 * 100.0)
    }
}

/// The figure of one run, with the percentage found above each bar.
pub(super) fn histogram(run: &Run, id: usize) -> Figure {
    let bins = &run.analysis.sizes;
    let highest = bins.iter().map(SizeBin::total).max().unwrap_or(0).max(1) as f64;
    let top = highest * 1.22;
    let (bars, mut notes) = bars(bins, highest);
    let areas = &run.input.evaluation.config.areas;
    notes.extend(area_names(areas, bins, highest));
    let line = |side: f64| Line {
        points: vec![(position(bins, side), 0.0), (position(bins, side), top)],
        color: GREY,
        dashed: true,
    };
    let lines: Vec<Line> = borders(areas).into_iter().map(line).collect();
    let edge = |v: f64| bins.get(v.round() as usize).map_or("∞".into(), |b| short(b.low));
    let axes = Axes {
        alt: "Ground-truth boxes by size, found and missed; numbers in the table below",
        x: (0.0..bins.len() as f64, "square root of the area, pixels"),
        y: (0.0..top, "boxes"),
        x_labels: bins.len() + 1,
        x_text: &edge,
    };
    let t = short(run.analysis.threshold);
    Figure {
        id: format!("size-{id}"),
        title: run.named("Recall by size"),
        svg: plot(&axes, &bars, &lines, &notes).svg,
        keys: vec![
            Key::new(format!("found, score of at least {t}"), BLUE, false),
            Key::new("found, score below the threshold", GREY, false),
            Key::new("missed", ORANGE, false),
        ],
        note: "Percentages: boxes found at the score threshold. Dashed lines: borders of the area \
               ranges."
            .into(),
        table: Some(table(bins, id)),
    }
}

/// Stacked bars, and the percentage above each; `highest` is the number of boxes of the highest
/// bar.
fn bars(bins: &[SizeBin], highest: f64) -> (Vec<Bar>, Vec<Note>) {
    let (mut bars, mut notes) = (vec![], vec![]);
    for (i, b) in bins.iter().enumerate() {
        let x = i as f64 + 0.08..i as f64 + 0.92;
        let (found, below, all) = (b.found as f64, (b.found + b.below) as f64, b.total() as f64);
        let parts = [(0.0..found, BLUE), (found..below, GREY), (below..all, ORANGE)];
        bars.extend(parts.into_iter().filter(|p| p.0.end > p.0.start).map(|(y, color)| Bar {
            x: x.clone(),
            y,
            color,
        }));
        if b.total() > 0 {
            let at = (i as f64 + 0.5, all + highest * 0.012);
            notes.push(Note { at, text: percent(b.found, b) });
        }
    }
    (bars, notes)
}

/// Position of a size on the horizontal axis, which has one unit per bin.
fn position(bins: &[SizeBin], side: f64) -> f64 {
    bins.iter().position(|b| b.low == side).unwrap_or(bins.len()) as f64
}

/// Names of the area ranges between their borders; none where the ranges are not contiguous.
fn area_names(areas: &[Area], bins: &[SizeBin], highest: f64) -> Vec<Note> {
    let ranges: Vec<_> = areas.iter().skip(1).collect();
    if ranges.len() >= 5 || !ranges.windows(2).all(|w| w[0].high == w[1].low) {
        return vec![];
    }
    let note = |r: &&Area| {
        let end = if r.high < 1e10 { position(bins, r.high.sqrt()) } else { bins.len() as f64 };
        let x = f64::midpoint(position(bins, r.low.sqrt()), end);
        Note { at: (x, highest * 1.12), text: r.name.clone() }
    };
    ranges.iter().map(note).collect()
}

/// The numbers of the histogram.
fn table(bins: &[SizeBin], id: usize) -> Table {
    let row = |b: &SizeBin| {
        let counts = [b.total(), b.found, b.below, b.missed].map(|n| n.to_string());
        let cells = counts.into_iter().chain([percent(b.found, b)]).map(Into::into).collect();
        (format!("{} to {}", short(b.low), short(b.high)), cells)
    };
    Table {
        id: ["size-table-a", "size-table-b"][id % 2],
        caption: "Boxes by square root of the area, pixels".into(),
        first: "size",
        columns: columns([
            ("boxes", ""),
            ("found", "score of at least the threshold"),
            ("below threshold", "found, but with a score below the threshold"),
            ("missed", ""),
            ("found, percent", ""),
        ]),
        rows: bins.iter().map(row).collect(),
    }
}
