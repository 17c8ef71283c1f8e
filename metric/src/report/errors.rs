//! The error breakdown: what would be gained by mending each kind of error.

use super::Run;
use super::format::{count, points, signed};
use super::names::Class;
use super::table::{Cell, Table, columns};
use crate::analysis::tide::{Kind, Tide};

/// One run's part of a line.
pub(super) struct Share {
    /// Number of errors, if they are counted.
    pub count: String,
    pub gain: String,
    /// Length of the bar, percent of the longest.
    pub width: f64,
}

/// A kind of error.
pub(super) struct Line {
    pub name: &'static str,
    pub meaning: &'static str,
    pub runs: Vec<Share>,
    /// Second run minus first.
    pub delta: Option<Cell>,
    /// Above this line starts the group of totals.
    pub total: bool,
}

/// The breakdown.
pub(super) struct Breakdown {
    pub lines: Vec<Line>,
    /// One sentence on each run.
    pub sentences: Vec<String>,
    pub classes: Table,
}

/// The breakdown of all runs.
pub(super) fn breakdown(runs: &[Run], classes: &[Class]) -> Breakdown {
    let tides: Vec<&Tide> = runs.iter().map(|r| &r.analysis.tide).collect();
    let longest = tides
        .iter()
        .flat_map(|t| t.gains.into_iter().chain([t.false_positives, t.false_negatives]))
        .fold(1e-9, f64::max);
    let line =
        |name, meaning, gain: &dyn Fn(&Tide) -> f64, count: &dyn Fn(&Tide) -> String, total| {
            let share = |t: &&Tide| Share {
                count: count(t),
                gain: format!("{:.1}", gain(t)),
                width: (gain(t) / longest * 100.0).max(0.0),
            };
            let delta = if let [a, b] = tides[..] {
                let text = signed(gain(b) - gain(a));
                // Less to gain is better.
                let class = match super::format::trend(&text) {
                    "good" => "bad",
                    "bad" => "good",
                    other => other,
                };
                Some(Cell { text, class })
            } else {
                None
            };
            Line { name, meaning, runs: tides.iter().map(share).collect(), delta, total }
        };
    let mut lines: Vec<Line> = Kind::ALL
        .iter()
        .map(|&k| {
            line(
                k.name(),
                k.meaning(),
                &|t| t.gains[k as usize],
                &|t| count(t.counts[k as usize]),
                false,
            )
        })
        .collect();
    let positives = |t: &Tide| count(t.counts[..5].iter().sum());
    lines.push(line(
        "False positives",
        "if each had the lowest score",
        &|t| t.false_positives,
        &positives,
        true,
    ));
    lines.push(line(
        "False negatives",
        "if unfound boxes were not asked for",
        &|t| t.false_negatives,
        &|_| String::new(),
        false,
    ));
    Breakdown {
        lines,
        sentences: runs.iter().map(sentence).collect(),
        classes: class_table(runs, classes),
    }
}

fn sentence(r: &Run) -> String {
    let t = &r.analysis.tide;
    let worst = Kind::ALL
        .into_iter()
        .reduce(|a, b| if t.gains[b as usize] > t.gains[a as usize] { b } else { a });
    let Some(worst) = worst.filter(|w| t.gains[*w as usize] >= 0.05) else { return String::new() };
    let ap50 = r.input.evaluation.ap_at(0.5);
    let mut out = format!(
        "{}TIDE’s AP50 is {:.1}",
        if r.letter.is_empty() { String::new() } else { format!("{}: ", r.letter) },
        t.ap
    );
    if ap50 >= 0.0 && (ap50 * 100.0 - t.ap).abs() >= 0.05 {
        out += &[" (COCO’s is ", &points(ap50), ": see the notes at the end)"].concat();
    }
    out + &format!(
        "; mending {} errors would gain the most, {:.1} points.",
        worst.name().to_lowercase(),
        t.gains[worst as usize]
    )
}

fn class_table(runs: &[Run], classes: &[Class]) -> Table {
    let heads: Vec<String> = Kind::ALL
        .iter()
        .flat_map(|k| runs.iter().map(|r| r.named(&k.name().to_lowercase())))
        .collect();
    let row = |c: &Class| {
        let of: Vec<_> = c
            .places
            .iter()
            .zip(runs)
            .map(|(k, r)| k.map(|k| r.analysis.tide.class_counts[k]))
            .collect();
        let cell = |counts: &Option<[usize; 6]>, k: &Kind| {
            counts.map_or(super::format::NONE.into(), |n| n[*k as usize].to_string())
        };
        (
            c.name.clone(),
            Kind::ALL
                .iter()
                .flat_map(|k| of.iter().map(|n| cell(n, k).into()).collect::<Vec<Cell>>())
                .collect(),
        )
    };
    Table {
        id: "class-errors",
        caption: "Number of errors by class of the detection, or of the missed box".into(),
        first: "class",
        columns: columns(&heads.iter().map(|h| (h.as_str(), "")).collect::<Vec<_>>()),
        rows: classes.iter().map(row).collect(),
    }
}
