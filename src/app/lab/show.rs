//! `dw-lab show`: the finished runs of a table as Markdown or HTML.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use askama::Template;
use dw_base::file::write_atomically;
use dw_base::program::print_result;
use dw_base::text::shown;

use super::statistics::Estimate;
use super::summary::{Summary, SummaryRow};
use crate::show::intervals::{Interval, panel};
use crate::{Error, Result};

/// How a table is to be read.
const LEGEND: &str = "AP in percent, mean over the seeds. Differences are paired by seed and taken \
                      against the first row; ± is the 95 % t-interval, * marks an interval that \
                      excludes zero. Memory is the peak of rank 0.";

/// Values of the page's template.
#[derive(Template)]
#[template(path = "lab.html")]
struct Page<'a> {
    title: &'a str,
    facts: Vec<String>,
    tables: Vec<Grid>,
    notes: Vec<String>,
    plots: Vec<String>,
}

/// A table with its explanation.
struct Grid {
    columns: &'static [&'static str],
    rows: Vec<Vec<String>>,
    legend: &'static str,
}

/// Names of the columns.
const COLUMNS: [&str; 12] = [
    "row",
    "paper",
    "AP",
    "±",
    "difference",
    "AP50",
    "AP75",
    "APs",
    "APm",
    "APl",
    "minutes",
    "MiB",
];

/// How the table of weights is to be read.
const WEIGHTS_LEGEND: &str = "Weights of the objects of validation images at the last evaluation, \
                              mean over the seeds. Candidates: points with more than 0.01 of an \
                              object's positive weight. Unweighted: objects without positive \
                              weight, percent. Correlation: Spearman's, of positive and negative \
                              weights over the points of an object's bag.";

/// Columns of the table of weights.
const WEIGHTS_COLUMNS: [&str; 4] = ["row", "candidates", "unweighted", "correlation"];

/// Prints or writes a table.
///
/// # Errors
/// An unknown table, no finished run, an output that is neither .md nor .html.
pub fn show(table: &str, out: &Path, file: Option<&Path>) -> Result<()> {
    let summary = Summary::read(table, out)?;
    let Some(file) = file else {
        return print_result(markdown(&summary, None).trim_end());
    };
    let write = |path: &Path, text: &str| write_atomically(path, |f| f.write_all(text.as_bytes()));
    match file.extension().and_then(|e| e.to_str()) {
        Some("html") => write(file, &html(&summary)?),
        Some("md") => {
            let svg = file.with_extension("svg");
            write(&svg, &plots(&summary)?[0])?;
            let name = svg.file_name().unwrap_or_default().to_string_lossy().into_owned();
            write(file, &markdown(&summary, Some(&name)))
        }
        _ => Err(Error::Usage(format!(
            "-o {}: expected a file name that ends in .md or .html",
            file.display()
        ))),
    }
}

/// The table as Markdown; `plot` is the name of an image file to include.
fn markdown(summary: &Summary, plot: Option<&str>) -> String {
    let mut text = format!("# {}\n\n", summary.name);
    for fact in summary.facts() {
        let _ = writeln!(text, "* {}", escaped(&fact));
    }
    for Grid { columns, rows, legend } in tables(summary) {
        let _ = write!(text, "\n| {} |\n", columns.join(" | "));
        let _ = writeln!(text, "| {} |", vec!["---"; columns.len()].join(" | "));
        for row in rows {
            let cells: Vec<_> = row.iter().map(|c| escaped(c)).collect();
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        }
        let _ = write!(text, "\n{legend}\n");
    }
    for note in notes(summary) {
        let _ = write!(text, "\n{}\n", escaped(&note));
    }
    if let Some(plot) = plot {
        let _ = write!(text, "\n![AP of each row with its interval](<{plot}>)\n");
    }
    text
}

/// Escapes the characters that mark tables, emphasis, links and HTML in Markdown.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    // Titles and names of machines come from files: control characters are escaped, too.
    for c in shown(text).to_string().chars() {
        if "\\|*_`<>[]".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn html(summary: &Summary) -> Result<String> {
    let page = Page {
        title: &summary.name,
        facts: summary.facts(),
        tables: tables(summary),
        notes: notes(summary),
        plots: plots(summary)?,
    };
    page.render().map_err(|e| Error::Bug(format!("cannot render the page: {e}")))
}

/// The table of metrics and, if runs have them, that of weights.
fn tables(summary: &Summary) -> Vec<Grid> {
    let rows = || summary.rows.iter();
    let metrics = rows().map(|row| cells_of(row, &summary.rows[0])).collect();
    let mut all = vec![Grid { columns: &COLUMNS, rows: metrics, legend: LEGEND }];
    if summary.runs().any(|o| o.metrics.contains_key("bag_candidates")) {
        let rows = rows().map(weights_of).collect();
        all.push(Grid { columns: &WEIGHTS_COLUMNS, rows, legend: WEIGHTS_LEGEND });
    }
    all
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |v| format!("{v:.digits$}"))
}

/// The cells of a row in the table of weights.
fn weights_of(row: &SummaryRow) -> Vec<String> {
    let mean = |name: &str| {
        let values = row.runs.values().filter_map(|o| o.metrics.get(name).copied());
        Estimate::of(&values.collect::<Vec<_>>()).map(|e| e.mean)
    };
    vec![
        row.title.clone(),
        number(mean("bag_candidates"), 1),
        number(mean("bag_unweighted").map(|share| 100.0 * share), 1),
        number(mean("bag_correlation"), 2),
    ]
}

/// The cells of a row in the table of metrics.
fn cells_of(row: &SummaryRow, first: &SummaryRow) -> Vec<String> {
    let mean = |metric: &str| number(row.mean(metric).map(|e| e.mean), 2);
    let half = row.mean("AP").and_then(|e| e.half);
    let minutes = row.mean_cost(|o| (o.cost.train_s + o.cost.eval_s) / 60.0);
    vec![
        format!("{} ({})", row.title, row.runs.len()),
        number(row.paper.map(|p| p.ap), 1),
        mean("AP"),
        number(half, 2),
        difference(row, first),
        mean("AP50"),
        mean("AP75"),
        mean("APs"),
        mean("APm"),
        mean("APl"),
        number(minutes, 1),
        number(row.mean_cost(|o| o.cost.peak_memory_mib), 0),
    ]
}

/// The difference of a row's AP to that of the first row.
fn difference(row: &SummaryRow, first: &SummaryRow) -> String {
    if std::ptr::eq(row, first) {
        return "-".into();
    }
    match Estimate::of(&row.differences("AP", first)) {
        None => "-".into(),
        Some(Estimate { mean, half: None }) => format!("{mean:+.2}"),
        Some(e @ Estimate { mean, half: Some(half) }) => {
            format!("{mean:+.2} ± {half:.2}{}", if e.differs_from_zero() { " *" } else { "" })
        }
    }
}

/// The notes of the rows, and what is missing.
fn notes(summary: &Summary) -> Vec<String> {
    let note = |r: &SummaryRow| r.note.as_ref().map(|n| format!("{}: {n}", r.title));
    let mut notes: Vec<String> = summary.rows.iter().filter_map(note).collect();
    let most = summary.rows.iter().map(|r| r.runs.len()).max().unwrap_or(0);
    let short = summary.rows.iter().filter(|r| r.runs.len() < most);
    let short: Vec<&str> = short.map(|r| r.title.as_str()).collect();
    if !short.is_empty() {
        notes.push(format!("Incomplete: fewer than {most} seeds of {}.", short.join(", ")));
    }
    notes.insert(0, "The number of finished seeds is in parentheses.".into());
    if summary.runs().any(|o| o.setup.base.is_some() || !o.setup.set.is_empty()) {
        notes.insert(
            1,
            "The rows were changed for this data and machine (settings above): the published AP, \
             of COCO, is not what they should reach."
                .into(),
        );
    }
    notes
}

/// The plots: AP of each row, and its difference to the first row.
fn plots(summary: &Summary) -> Result<Vec<String>> {
    let interval = |row: &SummaryRow, values: Vec<f64>| {
        let e = Estimate::of(&values)?;
        Some(Interval { title: row.title.clone(), values, mean: e.mean, half: e.half })
    };
    let rows = || summary.rows.iter();
    let aps: Vec<_> = rows().filter_map(|r| interval(r, r.values("AP"))).collect();
    let first = &summary.rows[0];
    let differences = rows().skip(1).filter_map(|r| interval(r, r.differences("AP", first)));
    let differences: Vec<_> = differences.collect();
    let mut plots = vec![panel(
        &format!("{}: AP, circles are seeds", summary.name),
        "AP, percent",
        &aps,
        None,
    )?];
    if !differences.is_empty() {
        let title = format!("{}: difference to {}", summary.name, first.title);
        plots.push(panel(&title, "difference of AP, percent", &differences, Some(0.0))?);
    }
    Ok(plots)
}
