//! Precision against recall, and AP against the IoU threshold.

use serde_json::json;

use super::Run;
use super::chart::{Axes, BLUE, Line, ORANGE, Plot, plot, ramp};
use super::figure::{Figure, Key};
use super::format::{points, short};
use super::names::Class;
use super::table::{Table, columns};
use crate::Evaluation;
use crate::coco::params::{RECALLS, recall_point};

/// Lines of one run, at most.
const LINES: usize = 10;
/// Classes up to which every line of every class goes into the page; with more, only a few thresholds do.
const FULL: usize = 150;

/// The figure, and for the page's script the lines of each class.
pub(super) struct Recall {
    pub figure: Figure,
    pub classes: Vec<String>,
    /// JSON, safe within a `script` element.
    pub data: String,
}

/// A line: run, index of the IoU threshold.
type Of = (usize, usize);

/// Precision against recall, mean over the classes.
pub(super) fn recall(runs: &[Run], classes: &[Class]) -> Recall {
    let few = |e: &Evaluation| {
        let iou = &e.params.iou;
        let known: Vec<usize> = [0.5, 0.75, 0.9]
            .iter()
            .filter_map(|v| iou.iter().position(|t| (t - v).abs() < 1e-9))
            .collect();
        if known.len() > 1 { known } else { spread(iou.len(), 3) }
    };
    let mut of: Vec<Of> = vec![];
    let mut lines = vec![];
    let mut keys = vec![];
    for (run, r) in runs.iter().enumerate() {
        let e = r.input.evaluation;
        let shown = if runs.len() > 1 { few(e) } else { spread(e.params.iou.len(), LINES) };
        for (t, color) in shown.iter().zip(ramp(shown.len())) {
            let mean: Vec<f64> = (0..RECALLS).map(|i| mean_at(e, *t, i)).collect();
            let known = mean.iter().all(|v| *v >= 0.0);
            let line = if known {
                mean.iter().enumerate().map(|(i, v)| (recall_point(i), *v)).collect()
            } else {
                vec![]
            };
            if known {
                of.push((run, *t));
                keys.push(Key::new(
                    r.named(&format!("IoU {:.2}", e.params.iou[*t])),
                    color,
                    run > 0,
                ));
                lines.push(Line { points: line, color, dashed: run > 0 });
            }
        }
    }
    let axes = Axes {
        alt: "Precision against recall, one line for each IoU threshold",
        x: (0.0..1.0, "recall"),
        y: (0.0..1.0, "precision"),
        x_labels: 6,
        x_text: &short,
    };
    let drawn = plot(&axes, &[], &lines, &[]);
    let kept = |o: &Of| classes.len() <= FULL || few(runs[o.0].input.evaluation).contains(&o.1);
    let data = data(runs, classes, &of, &kept, &drawn);
    let note = if lines.is_empty() { "There is no ground truth that counts." } else { "" };
    let figure = Figure {
        id: "recall".into(),
        title: "Precision and recall".into(),
        svg: drawn.svg,
        keys,
        note: note.into(),
        table: None,
    };
    Recall { figure, classes: classes.iter().map(|c| c.name.clone()).collect(), data }
}

/// `n` indices below `of`, evenly spread, with both ends.
fn spread(of: usize, n: usize) -> Vec<usize> {
    if of <= n { (0..of).collect() } else { (0..n).map(|i| i * (of - 1) / (n - 1)).collect() }
}

/// Mean precision over the classes with ground truth; -1 without one.
fn mean_at(e: &Evaluation, t: usize, r: usize) -> f64 {
    let m = e.params.max_dets.len() - 1;
    let (mut sum, mut n) = (0.0, 0);
    for v in (0..e.categories.len()).map(|k| e.precision_at(t, r, k, 0, m)).filter(|v| *v >= 0.0) {
        sum += v;
        n += 1;
    }
    if n == 0 { -1.0 } else { sum / f64::from(n) }
}

/// Curves as text: two characters a point, 4,096 steps.
fn data(
    runs: &[Run],
    classes: &[Class],
    of: &[Of],
    kept: &dyn Fn(&Of) -> bool,
    plot: &Plot,
) -> String {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let curve = |c: &Class, o: &Of| {
        let e = runs[o.0].input.evaluation;
        let m = e.params.max_dets.len() - 1;
        let Some(k) = c.places[o.0].filter(|k| kept(o) && e.precision_at(o.1, 0, *k, 0, m) >= 0.0)
        else {
            return String::new();
        };
        let mut text = String::with_capacity(2 * RECALLS);
        for r in 0..RECALLS {
            let v = (e.precision_at(o.1, r, k, 0, m).clamp(0.0, 1.0) * 4095.0).round() as usize;
            text.push(digits[v / 64] as char);
            text.push(digits[v % 64] as char);
        }
        text
    };
    let curves: Vec<Vec<String>> =
        classes.iter().map(|c| of.iter().map(|o| curve(c, o)).collect()).collect();
    // Nothing in it can end the element: no `<`, only digits and the characters above.
    json!({ "frame": plot.frame, "curves": curves }).to_string()
}

/// AP of all classes against the IoU threshold; nothing to draw for a single threshold.
pub(super) fn by_iou(runs: &[Run]) -> Option<Figure> {
    let first = &runs[0].input.evaluation.params.iou;
    let (low, high) = (*first.first()?, *first.last()?);
    if low >= high {
        return None;
    }
    let values = |r: &Run| -> Vec<(f64, f64)> {
        let e = r.input.evaluation;
        e.params
            .iou
            .iter()
            .map(|&t| (t, e.ap_at(t)))
            .filter(|p| p.1 >= 0.0 && (low..=high).contains(&p.0))
            .collect()
    };
    let colors = [BLUE, ORANGE];
    let all: Vec<Vec<(f64, f64)>> = runs.iter().map(values).collect();
    let lines: Vec<Line> = all
        .iter()
        .enumerate()
        .map(|(i, v)| Line { points: v.clone(), color: colors[i % 2], dashed: i > 0 })
        .collect();
    let axes = Axes {
        alt: "AP against the IoU threshold; the numbers are in the table below",
        x: (low..high, "IoU threshold"),
        y: (0.0..1.0, "AP"),
        x_labels: 10,
        x_text: &short,
    };
    let at =
        |v: &[(f64, f64)], t: f64| points(v.iter().find(|p| p.0 == t).map_or(-1.0, |p| p.1)).into();
    let table = Table {
        id: "iou-table",
        caption: "AP at each IoU threshold, points of 100".into(),
        first: "IoU",
        columns: columns(
            &runs
                .iter()
                .map(|r| r.named("AP"))
                .collect::<Vec<_>>()
                .iter()
                .map(|n| (n.as_str(), ""))
                .collect::<Vec<_>>(),
        ),
        rows: first
            .iter()
            .map(|&t| (format!("{t:.2}"), all.iter().map(|v| at(v, t)).collect()))
            .collect(),
    };
    let keys = if runs.len() > 1 {
        runs.iter()
            .enumerate()
            .map(|(i, r)| Key::new(r.named("AP"), colors[i % 2], i > 0))
            .collect()
    } else {
        vec![]
    };
    Some(Figure {
        id: "by-iou".into(),
        title: "AP against IoU threshold".into(),
        svg: plot(&axes, &[], &lines, &[]).svg,
        keys,
        note: String::new(),
        table: Some(table),
    })
}
