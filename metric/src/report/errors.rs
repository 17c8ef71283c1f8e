//! The error breakdown: AP gained by correcting each kind of error.

use super::classes::Class;
use super::format::{NONE, count, points, signed, trend};
use super::run::Run;
use super::table::{Cell, Table, columns};
use crate::analysis::error::Kind;
use crate::analysis::tide::Tide;

/// One run's part of a row.
pub(super) struct Share {
    /// Number of errors; empty if not counted.
    pub count: String,
    pub gain: String,
    /// Length of the bar in percent of the longest.
    pub width: f64,
}

/// A row of the breakdown.
pub(super) struct Line {
    pub name: &'static str,
    pub meaning: &'static str,
    pub runs: Vec<Share>,
    /// Second run minus first.
    pub delta: Option<Cell>,
    /// Whether this is the first row of the totals.
    pub total: bool,
}

/// The breakdown of all runs.
pub(super) struct Breakdown {
    pub lines: Vec<Line>,
    /// Summary of each run; may be empty.
    pub sentences: Vec<String>,
    pub classes: Table,
}

/// Computes the breakdown.
pub(super) fn breakdown(runs: &[Run], classes: &[Class]) -> Breakdown {
    let tides: Vec<&Tide> = runs.iter().map(|r| &r.analysis.tide).collect();
    let mut lines: Vec<Line> = Kind::ALL
        .iter()
        .map(|&k| {
            let number = |t: &Tide| count(t.counts[k as usize]);
            line(&tides, (k.name(), k.meaning()), &|t| t.gains[k as usize], &number)
        })
        .collect();
    let false_positives = ("False positives", "if all had the lowest score");
    let number = |t: &Tide| count(t.num_false_positives);
    lines.push(Line {
        total: true,
        ..line(&tides, false_positives, &|t| t.false_positives, &number)
    });
    let false_negatives = ("False negatives", "if unmatched ground truth were removed");
    lines.push(line(&tides, false_negatives, &|t| t.false_negatives, &|_| String::new()));
    Breakdown {
        lines,
        sentences: runs.iter().map(sentence).collect(),
        classes: class_table(runs, classes),
    }
}

/// A row from its name and meaning, and the gain and number of errors of each run.
fn line(
    tides: &[&Tide],
    (name, meaning): (&'static str, &'static str),
    gain: &dyn Fn(&Tide) -> f64,
    number: &dyn Fn(&Tide) -> String,
) -> Line {
    let longest = tides
        .iter()
        .flat_map(|t| t.gains.into_iter().chain([t.false_positives, t.false_negatives]))
        .fold(1e-9, f64::max);
    let share = |t: &&Tide| Share {
        count: number(t),
        gain: format!("{:.1}", gain(t)),
        width: (gain(t) / longest * 100.0).max(0.0),
    };
    let delta = if let [a, b] = tides {
        let text = signed(gain(b) - gain(a));
        // A smaller gain is better: less AP is lost.
        let class = match trend(&text) {
            "good" => "bad",
            "bad" => "good",
            other => other,
        };
        Some(Cell { text, class })
    } else {
        None
    };
    Line { name, meaning, runs: tides.iter().map(share).collect(), delta, total: false }
}

/// A sentence with TIDE's AP50 and the kind of error that costs the most AP; empty if none costs
/// any.
fn sentence(r: &Run) -> String {
    let t = &r.analysis.tide;
    let worst = Kind::ALL
        .into_iter()
        .reduce(|a, b| if t.gains[b as usize] > t.gains[a as usize] { b } else { a });
    let Some(worst) = worst.filter(|w| t.gains[*w as usize] >= 0.05) else { return String::new() };
    let ap50 = r.input.evaluation.ap_at(0.5);
    let mut out = format!(
        "{}AP50 by TIDE’s conventions is {:.1}",
        if r.letter.is_empty() { String::new() } else { format!("{}: ", r.letter) },
        t.ap
    );
    if ap50 >= 0.0 && (ap50 * 100.0 - t.ap).abs() >= 0.05 {
        out += &[" (by COCO’s ", &points(ap50), ", see the notes)"].concat();
    }
    out + &format!(
        ". Correcting {} errors would gain the most: {:.1} points.",
        worst.name().to_lowercase(),
        t.gains[worst as usize]
    )
}

/// Number of errors by class and kind.
fn class_table(runs: &[Run], classes: &[Class]) -> Table {
    let row = |c: &Class| {
        let counts: Vec<_> = c
            .places
            .iter()
            .zip(runs)
            .map(|(k, r)| k.map(|k| r.analysis.tide.class_counts[k]))
            .collect();
        let cells = |k: &Kind| -> Vec<Cell> {
            let text =
                |n: &Option<[usize; 6]>| n.map_or(NONE.into(), |n| n[*k as usize].to_string());
            counts.iter().map(|n| text(n).into()).collect()
        };
        (c.name.clone(), Kind::ALL.iter().flat_map(cells).collect())
    };
    let heads =
        Kind::ALL.iter().flat_map(|k| runs.iter().map(|r| r.named(&k.name().to_lowercase())));
    Table {
        id: "class-errors",
        caption: "Number of errors by class (of the detection, or of the missed box)".into(),
        first: "class",
        columns: columns(heads.map(|h| (h, ""))),
        rows: classes.iter().map(row).collect(),
    }
}
