//! Scores: precision and recall against the threshold, reliability, the best threshold of each class.

use super::Run;
use super::chart::{Axes, BLUE, Bar, GREEN, GREY, Line, ORANGE, plot};
use super::figure::{Figure, Key};
use super::format::{count, score, short};
use super::names::Class;
use super::table::{Cell, Table, columns};
use crate::analysis::score::{BINS, Cut};

/// Precision, recall and F1 of all classes together against the score threshold.
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
        alt: "Precision, recall and F1 against the score threshold",
        x: (0.0..1.0, "score threshold"),
        y: (0.0..1.0, "precision, recall, F1"),
        x_labels: 6,
        x_text: &short,
    };
    let note = match run.analysis.cuts.all {
        Some(c) => format!(
            "Best F1 of all classes together: {:.3} at scores of at least {:.3}; there precision is {:.3}, recall {:.3}.",
            c.f1, c.score, c.precision, c.recall
        ),
        None => "No detection is right: no threshold is better than another. Where one is needed, 0.5 is taken.".into(),
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

/// Reliability diagram.
pub(super) fn reliability(run: &Run, id: usize) -> Figure {
    let c = &run.analysis.calibration;
    let edge = |i: usize| i as f64 / BINS as f64;
    let full = c.bins.iter().enumerate().filter(|(_, b)| b.count > 0);
    let bars: Vec<Bar> = full
        .clone()
        .map(|(i, b)| Bar {
            x: edge(i) + 0.008..edge(i + 1) - 0.008,
            y: 0.0..b.precision,
            color: BLUE,
        })
        .collect();
    let lines = [
        Line {
            points: full.map(|(_, b)| (b.score, b.precision)).collect(),
            color: ORANGE,
            dashed: false,
        },
        Line { points: vec![(0.0, 0.0), (1.0, 1.0)], color: GREY, dashed: true },
    ];
    let axes = Axes {
        alt: "Share of detections that are right, by score; the numbers are in the table below",
        x: (0.0..1.0, "score"),
        y: (0.0..1.0, "share that is right"),
        x_labels: 6,
        x_text: &short,
    };
    let mut note = c.error.map_or("There are no detections.".into(), |e| {
        format!("Expected calibration error: {e:.3} (mean distance of score and share, each bar by its number of detections).")
    });
    if c.outside > 0 {
        note += &[
            " ",
            &count(c.outside),
            " scores are no numbers between 0 and 1 and stand in the outermost bars.",
        ]
        .concat();
    }
    let row = |(i, b): (usize, &crate::analysis::score::Bin)| {
        let value = |v: f64| score((b.count > 0).then_some(v));
        (
            format!("{:.1} to {:.1}", edge(i), edge(i + 1)),
            vec![b.count.to_string().into(), value(b.score).into(), value(b.precision).into()],
        )
    };
    let table = Table {
        id: ["reliability-table-a", "reliability-table-b"][id % 2],
        caption: "Reliability".into(),
        first: "scores",
        columns: columns(&[
            ("detections", ""),
            ("mean score", ""),
            ("share right", "IoU of at least 0.5 with an unfound box of the class"),
        ]),
        rows: c.bins.iter().enumerate().map(row).collect(),
    };
    let keys = vec![
        Key::new("share that is right", BLUE, false),
        Key::new("at the mean score", ORANGE, false),
        Key::new("perfect", GREY, true),
    ];
    Figure {
        id: format!("reliability-{id}"),
        title: run.named("Reliability"),
        svg: plot(&axes, &bars, &lines, &[]).svg,
        keys,
        note,
        table: Some(table),
    }
}

/// A column: heading, meaning, value.
type Field = (&'static str, &'static str, fn(&Cut) -> f64);

/// The threshold with the best F1 of each class.
pub(super) fn class_table(runs: &[Run], classes: &[Class]) -> Table {
    let fields: [Field; 4] = [
        ("best score", "threshold with the best F1", |c| c.score),
        ("F1", "harmonic mean of precision and recall", |c| c.f1),
        ("precision", "", |c| c.precision),
        ("recall", "", |c| c.recall),
    ];
    let heads: Vec<(String, &str)> =
        fields.iter().flat_map(|f| runs.iter().map(|r| (r.named(f.0), f.1))).collect();
    let row = |c: &Class| {
        let of: Vec<Option<Cut>> = c
            .places
            .iter()
            .zip(runs)
            .map(|(k, r)| k.and_then(|k| r.analysis.cuts.classes[k]))
            .collect();
        (
            c.name.clone(),
            fields
                .iter()
                .flat_map(|f| {
                    of.iter().map(|cut| score(cut.as_ref().map(f.2)).into()).collect::<Vec<Cell>>()
                })
                .collect(),
        )
    };
    Table {
        id: "class-scores",
        caption: "Score threshold with the best F1, class by class (IoU 0.5)".into(),
        first: "class",
        columns: columns(&heads.iter().map(|(n, h)| (n.as_str(), *h)).collect::<Vec<_>>()),
        rows: classes.iter().map(row).collect(),
    }
}
