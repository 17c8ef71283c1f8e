//! Found and missed ground truth by size.

use super::Run;
use super::chart::{Axes, BLUE, Bar, GREY, Line, Note, ORANGE, plot};
use super::figure::{Figure, Key};
use super::format::short;
use super::table::{Table, columns};
use crate::analysis::size::{SizeBin, borders};

fn share(part: usize, b: &SizeBin) -> String {
    if b.total() == 0 {
        super::format::NONE.into()
    } else {
        format!("{:.0}%", part as f64 / b.total() as f64 * 100.0)
    }
}

/// Histogram with the share that is found above each bar.
pub(super) fn histogram(run: &Run, id: usize) -> Figure {
    let bins = &run.analysis.sizes;
    let most = bins.iter().map(SizeBin::total).max().unwrap_or(0).max(1) as f64;
    let top = most * 1.22;
    let mut bars = vec![];
    let mut notes = vec![];
    for (i, b) in bins.iter().enumerate() {
        let x = i as f64 + 0.08..i as f64 + 0.92;
        let (found, faint, all) = (b.found as f64, (b.found + b.faint) as f64, b.total() as f64);
        let parts = [(0.0..found, BLUE), (found..faint, GREY), (faint..all, ORANGE)];
        bars.extend(parts.into_iter().filter(|p| p.0.end > p.0.start).map(|(y, color)| Bar {
            x: x.clone(),
            y,
            color,
        }));
        if b.total() > 0 {
            notes.push(Note { at: (i as f64 + 0.5, all + most * 0.012), text: share(b.found, b) });
        }
    }
    let mut lines = vec![];
    let areas = &run.input.evaluation.params.areas;
    let place = |side: f64| bins.iter().position(|b| b.low == side).unwrap_or(bins.len()) as f64;
    let borders = borders(areas);
    for &b in &borders {
        lines.push(Line {
            points: vec![(place(b), 0.0), (place(b), top)],
            color: GREY,
            dashed: true,
        });
    }
    // The names fit between the borders where the ranges follow one another, as COCO's do.
    let ranges: Vec<_> = areas.iter().skip(1).collect();
    if ranges.windows(2).all(|w| w[0].high == w[1].low) && ranges.len() < 5 {
        for r in ranges {
            let end = if r.high < 1e10 { place(r.high.sqrt()) } else { bins.len() as f64 };
            notes.push(Note {
                at: (f64::midpoint(place(r.low.sqrt()), end), most * 1.12),
                text: r.name.clone(),
            });
        }
    }
    let edge = |v: f64| bins.get(v.round() as usize).map_or("∞".into(), |b| short(b.low));
    let axes = Axes {
        alt: "Ground-truth boxes by size, found and missed; the numbers are in the table below",
        x: (0.0..bins.len() as f64, "square root of the area, pixels"),
        y: (0.0..top, "boxes"),
        x_labels: bins.len() + 1,
        x_text: &edge,
    };
    let row = |b: &SizeBin| {
        let cells = [
            b.total().to_string(),
            b.found.to_string(),
            b.faint.to_string(),
            b.missed.to_string(),
            share(b.found, b),
        ];
        (
            format!("{} to {}", short(b.low), short(b.high)),
            cells.into_iter().map(Into::into).collect(),
        )
    };
    let t = short(run.analysis.threshold);
    let table = Table {
        id: ["size-table-a", "size-table-b"][id % 2],
        caption: "Boxes by square root of the area, pixels".into(),
        first: "size",
        columns: columns(&[
            ("boxes", ""),
            ("found", ""),
            ("found faintly", "below the threshold"),
            ("missed", ""),
            ("found, share", ""),
        ]),
        rows: bins.iter().map(row).collect(),
    };
    Figure {
        id: format!("size-{id}"),
        title: run.named("Found and missed by size"),
        svg: plot(&axes, &bars, &lines, &notes).svg,
        keys: vec![
            Key::new(format!("found with a score of at least {t}"), BLUE, false),
            Key::new("found, but with a lower score", GREY, false),
            Key::new("missed", ORANGE, false),
        ],
        note: "Percentages: share found at the threshold. Dashed: borders of the area ranges."
            .into(),
        table: Some(table),
    }
}
