//! The page's header, COCO's numbers, and the table of classes.

use super::classes::Class;
use super::format::{NONE, count, delta, points, short};
use super::run::{Input, Run};
use super::table::{Cell, Table, columns};
use crate::coco::config::{Area, MetricConfig};
use crate::coco::summary::ClassRow;

/// A row of the header: one value for all runs, or one for each.
pub(super) struct Fact {
    pub key: String,
    pub values: Vec<String>,
}

/// A row of the header: its name, and the function that returns its value.
type FactOf = (&'static str, fn(&Input) -> String);

/// The rows of the header.
pub(super) fn facts(runs: &[Run]) -> Vec<Fact> {
    let fixed: [FactOf; 10] = [
        ("Data set", |i| i.data.into()),
        ("Date", |i| i.date.into()),
        ("Images", |i| count(i.problem.images.len())),
        ("Classes", |i| count(i.problem.categories.len())),
        ("Ground-truth boxes", |i| count(i.evaluation.classes.iter().map(|c| c.truth).sum())),
        ("Crowd regions", |i| count(i.evaluation.classes.iter().map(|c| c.crowds).sum())),
        ("Detections", |i| count(i.evaluation.classes.iter().map(|c| c.detections).sum())),
        ("IoU thresholds", |i| list(&i.evaluation.config.iou)),
        ("Area ranges", |i| areas(&i.evaluation.config)),
        ("Detections per image and class", |i| limits(&i.evaluation.config)),
    ];
    let mut out: Vec<Fact> = vec![];
    if runs.len() > 1 {
        out.push(Fact {
            key: "Run".into(),
            values: runs.iter().map(|r| r.input.title.to_string()).collect(),
        });
    }
    for (key, value) in fixed {
        out.push(Fact { key: key.into(), values: runs.iter().map(|r| value(r.input)).collect() });
    }
    for (key, _) in runs.iter().flat_map(|r| r.input.facts) {
        if !out.iter().any(|f| &f.key == key) {
            let value = |r: &Run| {
                r.input.facts.iter().find(|f| &f.0 == key).map_or(NONE.into(), |f| f.1.clone())
            };
            out.push(Fact { key: key.clone(), values: runs.iter().map(value).collect() });
        }
    }
    for f in &mut out {
        // Equal values are shown once.
        if f.values.iter().all(|v| *v == f.values[0]) {
            f.values.truncate(1);
        }
    }
    out.retain(|f| f.values.iter().any(|v| !v.is_empty()));
    out
}

/// IoU thresholds as text, abbreviated if more than three.
fn list(iou: &[f64]) -> String {
    match iou {
        [first, .., last] if iou.len() > 3 => {
            format!("{} to {} ({})", short(*first), short(*last), iou.len())
        }
        _ => iou.iter().map(|v| short(*v)).collect::<Vec<_>>().join(", "),
    }
}

/// Area ranges other than `all` as text, with side lengths in pixels.
fn areas(p: &MetricConfig) -> String {
    let side =
        |v: f64| if v >= 1e10 { "∞".to_string() } else { format!("{}²", short(v.sqrt())) };
    let range = |a: &Area| format!("{} {} to {}", a.name, side(a.low), side(a.high));
    p.areas.iter().skip(1).map(range).collect::<Vec<_>>().join(", ")
}

/// Detection limits as text.
fn limits(p: &MetricConfig) -> String {
    p.max_dets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// One of COCO's numbers.
pub(super) struct Number {
    pub name: String,
    pub meaning: String,
    pub values: Vec<String>,
    /// Second run minus first.
    pub delta: Option<Cell>,
}

/// The numbers that all runs have.
pub(super) fn numbers(runs: &[Run]) -> Vec<Number> {
    let all: Vec<Vec<(String, f64)>> = runs.iter().map(|r| r.input.evaluation.named()).collect();
    let number = |(name, first): &(String, f64)| {
        let find = |of: &Vec<(String, f64)>| of.iter().find(|n| &n.0 == name).map(|n| n.1);
        let values = all.iter().map(find).collect::<Option<Vec<f64>>>()?;
        let delta = values.get(1).map(|b| Cell::trend(delta(*first, *b)));
        Some(Number {
            name: name.clone(),
            meaning: meaning(name),
            values: values.into_iter().map(points).collect(),
            delta,
        })
    };
    all[0].iter().filter_map(number).collect()
}

/// Explanation of a number, from its name.
fn meaning(name: &str) -> String {
    let size = |s: &str| match s {
        "s" => "small boxes".to_string(),
        "m" => "medium boxes".to_string(),
        "l" => "large boxes".to_string(),
        other => other.trim_start_matches('_').to_string(),
    };
    match (name.strip_prefix("AP"), name.strip_prefix("AR")) {
        (Some(""), _) => "mean over all IoU thresholds".into(),
        (Some(iou @ ("50" | "75")), _) => format!("at IoU 0.{iou}"),
        (Some(s), _) => size(s),
        (_, Some(n)) if n.parse::<usize>().is_ok() => format!("{n} detections per image and class"),
        (_, Some(s)) => size(s),
        _ => String::new(),
    }
}

/// A column: heading, explanation, value.
type Metric = (&'static str, &'static str, fn(&ClassRow) -> f64);

/// AP and AR of each class.
pub(super) fn class_table(runs: &[Run], classes: &[Class]) -> Table {
    let rows: Vec<_> = runs.iter().map(|r| r.input.evaluation.class_rows()).collect();
    let metrics: [Metric; 4] = [
        ("AP", "average precision, mean over all IoU thresholds", |r| r.ap),
        ("AP50", "at IoU 0.50", |r| r.ap50),
        ("AP75", "at IoU 0.75", |r| r.ap75),
        ("AR", "recall, mean over all IoU thresholds", |r| r.ar),
    ];
    let mut heads = vec![];
    for (name, hint, _) in &metrics {
        if let [a, b] = runs {
            heads.extend([
                (format!("{name} {}", a.letter), *hint),
                (format!("{name} {}", b.letter), *hint),
                (format!("Δ {name}"), "B minus A"),
            ]);
        } else {
            heads.push(((*name).into(), *hint));
        }
    }
    heads.push(("boxes".into(), "ground truth other than crowds"));
    heads.extend(
        runs.iter().map(|r| (r.named("dets"), "all detections, including those beyond the limits")),
    );
    let row = |c: &Class| {
        let of_runs: Vec<_> =
            c.places.iter().zip(&rows).map(|(k, rows)| k.map(|k| &rows[k])).collect();
        let mut cells: Vec<Cell> = vec![];
        for (_, _, metric) in &metrics {
            let values: Vec<f64> = of_runs.iter().map(|r| r.map_or(-1.0, metric)).collect();
            cells.extend(values.iter().map(|v| points(*v).into()));
            if let [a, b] = values[..] {
                cells.push(Cell::trend(delta(a, b)));
            }
        }
        cells.push(
            of_runs.iter().flatten().next().map_or(NONE.into(), |r| r.truth.to_string()).into(),
        );
        cells.extend(
            of_runs.iter().map(|r| r.map_or(NONE.into(), |r| r.detections.to_string()).into()),
        );
        (c.name.clone(), cells)
    };
    Table {
        id: "classes",
        caption: "Classes (AP and AR in points of 100)".into(),
        first: "class",
        columns: columns(heads),
        rows: classes.iter().map(row).collect(),
    }
}
