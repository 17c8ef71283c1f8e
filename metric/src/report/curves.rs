//! Precision-recall curves, and AP by IoU threshold.

use serde_json::json;

use super::chart::{Axes, BLUE, Line, ORANGE, Plot, plot, ramp};
use super::classes::Class;
use super::figure::{Figure, Key};
use super::format::{points, short};
use super::run::Run;
use super::table::{Table, columns};
use crate::coco::config::{RECALLS, recall_point};
use crate::coco::evaluation::Evaluation;

/// Maximum number of curves of a single run.
const MAX_LINES: usize = 10;
/// Maximum number of classes for which the page contains the curves of each class at all shown
/// thresholds. With more classes, it contains only those at the thresholds of [`few`].
const MAX_FULL: usize = 150;

/// Precision-recall curves, and those of each class for the page's script.
pub(super) struct Recall {
    pub figure: Figure,
    /// Class names.
    pub classes: Vec<String>,
    /// JSON, safe within a `script` element.
    pub data: String,
}

/// A curve: index of the run, index of the IoU threshold.
type CurveId = (usize, usize);

/// Precision-recall curves, mean over the classes.
pub(super) fn recall(runs: &[Run], classes: &[Class]) -> Recall {
    let (mut ids, mut lines, mut keys) = (vec![], vec![], vec![]);
    for (run, r) in runs.iter().enumerate() {
        let e = r.input.evaluation;
        let iou = &e.config.iou;
        let shown = if runs.len() > 1 { few(e) } else { spread(iou.len(), MAX_LINES) };
        for (&t, color) in shown.iter().zip(ramp(shown.len())) {
            let mean: Vec<f64> = (0..RECALLS).map(|i| mean_at(e, t, i)).collect();
            if mean.iter().any(|v| *v < 0.0) {
                continue;
            }
            let dashed = run > 0;
            let points = mean.iter().enumerate().map(|(i, v)| (recall_point(i), *v)).collect();
            ids.push((run, t));
            keys.push(Key::new(r.named(&format!("IoU {:.2}", iou[t])), color, dashed));
            lines.push(Line { points, color, dashed });
        }
    }
    let axes = Axes {
        alt: "Precision-recall curves, one for each IoU threshold",
        x: (0.0..1.0, "recall"),
        y: (0.0..1.0, "precision"),
        x_labels: 6,
        x_text: &short,
    };
    let plot = plot(&axes, &[], &lines, &[]);
    let data = data(runs, classes, &ids, &plot);
    let note = if lines.is_empty() { "There is no ground truth other than crowds." } else { "" };
    let figure = Figure {
        id: "recall".into(),
        title: "Precision and recall".into(),
        svg: plot.svg,
        keys,
        note: note.into(),
        table: None,
    };
    Recall { figure, classes: classes.iter().map(|c| c.name.clone()).collect(), data }
}

/// Indices of the IoU thresholds 0.5, 0.75 and 0.9, or of three evenly spaced ones if fewer than
/// two of these were evaluated.
fn few(e: &Evaluation) -> Vec<usize> {
    let iou = &e.config.iou;
    let index = |v: &f64| iou.iter().position(|t| (t - v).abs() < 1e-9);
    let usual: Vec<usize> = [0.5, 0.75, 0.9].iter().filter_map(index).collect();
    if usual.len() > 1 { usual } else { spread(iou.len(), 3) }
}

/// `n` evenly spaced indices below `of`, including both ends.
fn spread(of: usize, n: usize) -> Vec<usize> {
    if of <= n { (0..of).collect() } else { (0..n).map(|i| i * (of - 1) / (n - 1)).collect() }
}

/// Mean precision over the classes with ground truth; -1 without any.
fn mean_at(e: &Evaluation, t: usize, r: usize) -> f64 {
    let m = e.config.max_dets.len() - 1;
    let (mut sum, mut n) = (0.0, 0);
    for v in (0..e.categories.len()).map(|k| e.precision_at(t, r, k, 0, m)).filter(|v| *v >= 0.0) {
        sum += v;
        n += 1;
    }
    if n == 0 { -1.0 } else { sum / f64::from(n) }
}

/// The curves of each class as JSON, with the position of the axes in the plot.
fn data(runs: &[Run], classes: &[Class], ids: &[CurveId], plot: &Plot) -> String {
    let kept = |(run, t): &CurveId| {
        classes.len() <= MAX_FULL || few(runs[*run].input.evaluation).contains(t)
    };
    let curve = |c: &Class, id: &CurveId| {
        let e = runs[id.0].input.evaluation;
        c.places[id.0].filter(|_| kept(id)).map_or_else(String::new, |k| encode(e, id.1, k))
    };
    let curves: Vec<Vec<String>> =
        classes.iter().map(|c| ids.iter().map(|id| curve(c, id)).collect()).collect();
    // Safe within the element: nothing in it contains `<`.
    json!({ "frame": plot.frame, "curves": curves }).to_string()
}

/// A curve of class `k` as text: precision in 4,096 steps, two base-64 digits per recall point;
/// empty without ground truth.
fn encode(e: &Evaluation, t: usize, k: usize) -> String {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let m = e.config.max_dets.len() - 1;
    let mut text = String::with_capacity(2 * RECALLS);
    if e.precision_at(t, 0, k, 0, m) < 0.0 {
        return text;
    }
    for r in 0..RECALLS {
        let v = (e.precision_at(t, r, k, 0, m).clamp(0.0, 1.0) * 4095.0).round() as usize;
        text.push(digits[v / 64] as char);
        text.push(digits[v % 64] as char);
    }
    text
}

/// AP by IoU threshold; `None` for a single threshold.
pub(super) fn by_iou(runs: &[Run]) -> Option<Figure> {
    let first = &runs[0].input.evaluation.config.iou;
    let (low, high) = (*first.first()?, *first.last()?);
    if low >= high {
        return None;
    }
    let values = |r: &Run| -> Vec<(f64, f64)> {
        let e = r.input.evaluation;
        let all = e.config.iou.iter().map(|&t| (t, e.ap_at(t)));
        all.filter(|p| p.1 >= 0.0 && (low..=high).contains(&p.0)).collect()
    };
    let values: Vec<Vec<(f64, f64)>> = runs.iter().map(values).collect();
    let colors = [BLUE, ORANGE];
    let line = |(i, v): (usize, &Vec<(f64, f64)>)| Line {
        points: v.clone(),
        color: colors[i % 2],
        dashed: i > 0,
    };
    let lines: Vec<Line> = values.iter().enumerate().map(line).collect();
    let axes = Axes {
        alt: "AP by IoU threshold; numbers in the table below",
        x: (low..high, "IoU threshold"),
        y: (0.0..1.0, "AP"),
        x_labels: 10,
        x_text: &short,
    };
    let key = |(i, r): (usize, &Run)| Key::new(r.named("AP"), colors[i % 2], i > 0);
    let keys = if runs.len() > 1 { runs.iter().enumerate().map(key).collect() } else { vec![] };
    Some(Figure {
        id: "by-iou".into(),
        title: "AP by IoU threshold".into(),
        svg: plot(&axes, &[], &lines, &[]).svg,
        keys,
        note: String::new(),
        table: Some(iou_table(runs, first, &values)),
    })
}

/// AP of each run at each threshold. `values`: pairs (threshold, AP) of each run.
fn iou_table(runs: &[Run], thresholds: &[f64], values: &[Vec<(f64, f64)>]) -> Table {
    let at =
        |v: &[(f64, f64)], t: f64| points(v.iter().find(|p| p.0 == t).map_or(-1.0, |p| p.1)).into();
    let row = |&t: &f64| (format!("{t:.2}"), values.iter().map(|v| at(v, t)).collect());
    Table {
        id: "iou-table",
        caption: "AP at each IoU threshold, points of 100".into(),
        first: "IoU",
        columns: columns(runs.iter().map(|r| (r.named("AP"), ""))),
        rows: thresholds.iter().map(row).collect(),
    }
}
