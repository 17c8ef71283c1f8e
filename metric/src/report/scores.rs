//! Precision and recall by score threshold, calibration, and the best threshold of each class.

use super::chart::{Axes, BLUE, Bar, GREEN, GREY, Line, ORANGE, plot};
use super::classes::Class;
use super::figure::{Figure, Key};
use super::format::{count, score, short};
use super::run::Run;
use super::table::{Cell, Table, columns};
use crate::analysis::score::{BINS, Bin, Calibration, Cut};

/// Precision, recall and F1 of all classes together by score threshold.
pub(super) fn threshold(run: &Run, id: usize) -> Figure {
    let curve = &run.analysis.cuts.curve;
    let line = |value: fn(&Cut) -> f64, color, dashed| Line {
        points: curve.iter().map(|c| (c.score, value(c))).filter(|p| !p.1.is_nan()).collect(),
        color,
        dashed,
    };
    let t = run.analysis.threshold.clamp(0.0, 1.0);
    let lines = [
        line(|c| c.precision, BLUE, false),
        line(|c| c.recall, ORANGE, true),
        line(|c| c.f1, GREEN, false),
        Line { points: vec![(t, 0.0), (t, 1.0)], color: GREY, dashed: true },
    ];
    let axes = Axes {
        alt: "Precision, recall and F1 by score threshold",
        x: (0.0..1.0, "score threshold"),
        y: (0.0..1.0, "precision, recall, F1"),
        x_labels: 6,
        x_text: &short,
    };
    let note = match run.analysis.cuts.all {
        Some(c) => format!(
            "Best F1 over all classes: {:.3} at a score threshold of {:.3} (precision {:.3}, \
             recall {:.3}).",
            c.f1, c.score, c.precision, c.recall
        ),
        None => "There are no true positives; 0.5 is used where a threshold is needed.".into(),
    };
    let keys = vec![
        Key::new("precision", BLUE, false),
        Key::new("recall", ORANGE, true),
        Key::new("F1", GREEN, false),
        Key::new("best F1", GREY, true),
    ];
    Figure {
        id: format!("threshold-{id}"),
        title: run.named("Score threshold"),
        svg: plot(&axes, &[], &lines, &[]).svg,
        keys,
        note,
        table: None,
    }
}

/// Lower edge of bin `i` of the reliability diagram.
fn edge(i: usize) -> f64 {
    i as f64 / BINS as f64
}

/// Reliability diagram.
pub(super) fn reliability(run: &Run, id: usize) -> Figure {
    let c = &run.analysis.calibration;
    let full = c.bins.iter().enumerate().filter(|(_, b)| b.count > 0);
    let bar = |(i, b): (usize, &Bin)| Bar {
        x: edge(i) + 0.008..edge(i + 1) - 0.008,
        y: 0.0..b.precision,
        color: BLUE,
    };
    let bars: Vec<Bar> = full.clone().map(bar).collect();
    let lines = [
        Line {
            points: full.map(|(_, b)| (b.score, b.precision)).collect(),
            color: ORANGE,
            dashed: false,
        },
        Line { points: vec![(0.0, 0.0), (1.0, 1.0)], color: GREY, dashed: true },
    ];
    let axes = Axes {
        alt: "Precision by score; numbers in the table below",
        x: (0.0..1.0, "score"),
        y: (0.0..1.0, "precision"),
        x_labels: 6,
        x_text: &short,
    };
    Figure {
        id: format!("reliability-{id}"),
        title: run.named("Reliability"),
        svg: plot(&axes, &bars, &lines, &[]).svg,
        keys: vec![
            Key::new("precision", BLUE, false),
            Key::new("precision at the mean score", ORANGE, false),
            Key::new("perfect calibration", GREY, true),
        ],
        note: reliability_note(c),
        table: Some(reliability_table(c, id)),
    }
}

/// Calibration error, and the number of scores outside 0..1.
fn reliability_note(c: &Calibration) -> String {
    let mut note = c.error.map_or("There are no detections.".into(), |e| {
        format!(
            "Expected calibration error: {e:.3} (difference of mean score and precision, averaged \
             over the bins weighted by their number of detections)."
        )
    });
    if c.outside > 0 {
        note += " Scores outside 0 to 1, counted in the first and last bin: ";
        note += &count(c.outside);
        note += ".";
    }
    note
}

/// The numbers of the reliability diagram.
fn reliability_table(c: &Calibration, id: usize) -> Table {
    let row = |(i, b): (usize, &Bin)| {
        let value = |v: f64| score((b.count > 0).then_some(v));
        (
            format!("{:.1} to {:.1}", edge(i), edge(i + 1)),
            vec![b.count.to_string().into(), value(b.score).into(), value(b.precision).into()],
        )
    };
    Table {
        id: ["reliability-table-a", "reliability-table-b"][id % 2],
        caption: "Reliability".into(),
        first: "scores",
        columns: columns([
            ("detections", ""),
            ("mean score", ""),
            ("precision", "fraction of true positives at IoU 0.5"),
        ]),
        rows: c.bins.iter().enumerate().map(row).collect(),
    }
}

/// A column: heading, explanation, value.
type Field = (&'static str, &'static str, fn(&Cut) -> f64);

/// The score threshold with the best F1 of each class.
pub(super) fn class_table(runs: &[Run], classes: &[Class]) -> Table {
    let fields: [Field; 4] = [
        ("threshold", "score threshold with the best F1", |c| c.score),
        ("F1", "harmonic mean of precision and recall", |c| c.f1),
        ("precision", "", |c| c.precision),
        ("recall", "", |c| c.recall),
    ];
    let row = |c: &Class| {
        let cuts: Vec<Option<Cut>> = c
            .places
            .iter()
            .zip(runs)
            .map(|(k, r)| k.and_then(|k| r.analysis.cuts.classes[k]))
            .collect();
        let cells = |f: &Field| -> Vec<Cell> {
            cuts.iter().map(|cut| score(cut.as_ref().map(f.2)).into()).collect()
        };
        (c.name.clone(), fields.iter().flat_map(cells).collect())
    };
    Table {
        id: "class-scores",
        caption: "Score threshold with the best F1 of each class (IoU 0.5)".into(),
        first: "class",
        columns: columns(fields.iter().flat_map(|f| runs.iter().map(|r| (r.named(f.0), f.1)))),
        rows: classes.iter().map(row).collect(),
    }
}
