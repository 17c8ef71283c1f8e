//! The numbers of an evaluation as text and as JSON.

use std::collections::{HashMap, HashSet};

use dw_base::Result;
use dw_base::program::print_result;
use dw_base::text::{self, shown};
use serde_json::{Map, Value, json};

use super::intervals;
use crate::coco::bootstrap::{Interval, Samples};
use crate::coco::evaluation::Evaluation;

/// Prints one evaluation, or two side by side, to standard output. `samples` are those of each
/// evaluation, or empty.
///
/// # Errors
/// Standard output cannot be written.
pub fn print(
    evaluations: &[&Evaluation],
    samples: &[Samples],
    names: &[String],
    json: bool,
    per_class: bool,
) -> Result<()> {
    let text = match evaluations {
        [a, b] => {
            let pair = if let [a, b] = samples { Some((a, b)) } else { None };
            if json {
                both_as_json(a, b, pair, names).to_string()
            } else {
                side_by_side(a, b, pair, names, per_class)
            }
        }
        [one] if json => as_json(one, samples.first(), names).to_string(),
        [one] => as_text(one, samples.first(), names, per_class),
        _ => return Ok(()),
    };
    print_result(if json { text::json(&text) } else { text })
}

/// Unique class names: a duplicate name gets its category id appended, and so do all names if the
/// result is that of another class.
pub fn labels(names: &[String], categories: &[i64]) -> Vec<String> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    let with_id = |(name, id): (&String, &i64)| format!("{name} (id {id})");
    let all = || names.iter().zip(categories);
    let label = |(name, id): (&String, &i64)| {
        if counts[name.as_str()] > 1 { with_id((name, id)) } else { name.clone() }
    };
    let labels: Vec<String> = all().map(label).collect();
    let unique: HashSet<&String> = labels.iter().collect();
    if unique.len() == labels.len() { labels } else { all().map(with_id).collect() }
}

/// The numbers and the AP of each class, as floats in the shortest form that parses to the same
/// value. With `samples`, the key `bootstrap` holds their intervals.
pub fn as_json(evaluation: &Evaluation, samples: Option<&Samples>, names: &[String]) -> Value {
    let mut out: Map<String, Value> =
        evaluation.named().into_iter().map(|(name, value)| (name, json!(value))).collect();
    let classes: Map<String, Value> =
        names.iter().cloned().zip(evaluation.per_class()).map(|(n, v)| (n, json!(v))).collect();
    out.insert("per_class".into(), Value::Object(classes));
    if let Some(samples) = samples {
        out.insert("bootstrap".into(), intervals::as_json(samples, names));
    }
    Value::Object(out)
}

/// Two evaluations, and the intervals of their differences.
fn both_as_json(
    a: &Evaluation,
    b: &Evaluation,
    samples: Option<(&Samples, &Samples)>,
    names: &[String],
) -> Value {
    let mut out = json!({
        "a": as_json(a, samples.map(|s| s.0), names),
        "b": as_json(b, samples.map(|s| s.1), names),
    });
    if let Some((of_a, of_b)) = samples {
        out["bootstrap"] = intervals::differences_as_json((a, of_a), (b, of_b), names);
    }
    out
}

/// The numbers, with `per_class` followed by a table of all classes, and with `samples` with their
/// intervals.
pub fn as_text(
    evaluation: &Evaluation,
    samples: Option<&Samples>,
    names: &[String],
    per_class: bool,
) -> String {
    let named = evaluation.named();
    let width = named.iter().map(|n| n.0.len()).max().unwrap_or(0).max(6);
    let interval = |name: &str| {
        let interval = Interval::of(samples?.number(name)?)?;
        Some(format!(" {}", intervals::text(Some(interval))))
    };
    let line = |(name, value): &(String, f64)| {
        format!("{name:<width$} {value:.4}{}", interval(name).unwrap_or_default())
    };
    let mut lines: Vec<String> = named.iter().map(line).collect();
    if per_class {
        lines.push(format!("\n{}", class_table(evaluation, samples, names)));
    }
    if let Some(samples) = samples {
        lines.push(format!("\n[ ]: {}", intervals::description(samples.settings)));
    }
    lines.join("\n")
}

/// The table of all classes.
fn class_table(evaluation: &Evaluation, samples: Option<&Samples>, names: &[String]) -> String {
    let mut header = vec!["class", "AP"];
    header.extend(samples.map(|_| intervals::HEADING));
    header.extend(["AP50", "AP75", "AR", "truth", "crowds", "detections"]);
    let rows = names.iter().zip(evaluation.class_rows()).enumerate().map(|(k, (name, row))| {
        let mut cells = vec![shown(name).to_string(), number(row.ap)];
        cells.extend(samples.map(|s| intervals::text(Interval::of(&s.categories[k]))));
        cells.extend([row.ap50, row.ap75, row.ar].map(number));
        cells.extend([row.truth, row.crowds, row.detections].map(|n| n.to_string()));
        cells
    });
    table(&header, rows)
}

/// Two evaluations and their difference, with the interval of the difference.
fn side_by_side(
    a: &Evaluation,
    b: &Evaluation,
    samples: Option<(&Samples, &Samples)>,
    names: &[String],
    per_class: bool,
) -> String {
    let row = |name: String, a: f64, b: f64, pair: Option<(&[f64], &[f64])>| {
        let delta = if a < 0.0 || b < 0.0 { "-".to_owned() } else { format!("{:+.4}", b - a) };
        let mut cells = vec![name, number(a), number(b), delta];
        if samples.is_some() {
            let interval = pair.and_then(|(a, b)| Interval::of_difference(a, b));
            cells.push(intervals::signed_text(interval));
            cells.push(intervals::verdict(interval).to_owned());
        }
        cells
    };
    let mut header = vec!["", "A", "B", "B - A"];
    if samples.is_some() {
        header.extend([intervals::HEADING, "excludes 0"]);
    }
    let of_number =
        |name: &str| samples.and_then(|(a, b)| Some((a.number(name)?, b.number(name)?)));
    let numbers = a.named().into_iter().zip(b.named()).map(|((name, a), (_, b))| {
        let pair = of_number(&name);
        row(name, a, b, pair)
    });
    let mut parts = vec![table(&header, numbers)];
    if per_class {
        let of_class =
            |k: usize| samples.map(|(a, b)| (&a.categories[k][..], &b.categories[k][..]));
        let rows = names.iter().zip(a.per_class().into_iter().zip(b.per_class())).enumerate();
        let rows = rows.map(|(k, (n, (a, b)))| row(shown(n).to_string(), a, b, of_class(k)));
        parts.push(table(&header, rows));
    }
    if let Some((a, _)) = samples {
        let description = intervals::description(a.settings);
        parts.push(format!(
            "{}: of B - A, {description}; A and B share each sample",
            intervals::HEADING
        ));
    }
    parts.join("\n\n")
}

/// Four decimals; a dash for -1, which means undefined.
fn number(v: f64) -> String {
    if v < 0.0 { "-".to_owned() } else { format!("{v:.4}") }
}

/// A table without borders, all columns but the first right-aligned.
fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(comfy_table::CellAlignment::Right);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_unique() {
        let of = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            let ids: Vec<i64> = (1..=names.len() as i64).collect();
            labels(&names, &ids)
        };
        assert_eq!(of(&["a", "b"]), ["a", "b"]);
        assert_eq!(of(&["a", "b", "a"]), ["a (id 1)", "b", "a (id 3)"]);
        let last = "a (id 1) (id 3)";
        assert_eq!(of(&["a", "a", "a (id 1)"]), ["a (id 1)", "a (id 2)", last]);
    }
}
