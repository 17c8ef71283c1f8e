//! The numbers of an evaluation as text and as JSON.
#![expect(clippy::print_stdout, reason = "the command's results")]

use std::collections::HashMap;

use dw_base::text::{self, shown};
use serde_json::{Map, Value, json};

use crate::coco::evaluation::Evaluation;

/// Prints one evaluation, or two side by side, to standard output.
pub fn print(evaluations: &[&Evaluation], names: &[String], json: bool, per_class: bool) {
    match evaluations {
        [a, b] if json => {
            let both = json!({"a": as_json(a, names), "b": as_json(b, names)});
            println!("{}", text::json(&both.to_string()));
        }
        [a, b] => println!("{}", side_by_side(a, b, names, per_class)),
        _ => {
            for e in evaluations {
                if json {
                    println!("{}", text::json(&as_json(e, names).to_string()));
                } else {
                    println!("{}", as_text(e, names, per_class));
                }
            }
        }
    }
}

/// Unique class names: a duplicate name gets its category id appended.
pub fn labels(names: &[String], categories: &[i64]) -> Vec<String> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    let label = |(name, id): (&String, &i64)| {
        if counts[name.as_str()] > 1 { format!("{name} (id {id})") } else { name.clone() }
    };
    names.iter().zip(categories).map(label).collect()
}

/// The numbers and AP of each class; floats in the shortest form that parses to the same value.
pub fn as_json(evaluation: &Evaluation, names: &[String]) -> Value {
    let mut out: Map<String, Value> =
        evaluation.named().into_iter().map(|(name, value)| (name, json!(value))).collect();
    let classes: Map<String, Value> =
        names.iter().cloned().zip(evaluation.per_class()).map(|(n, v)| (n, json!(v))).collect();
    out.insert("per_class".into(), Value::Object(classes));
    Value::Object(out)
}

/// The numbers, and with `per_class` a table of all classes.
pub fn as_text(evaluation: &Evaluation, names: &[String], per_class: bool) -> String {
    let named = evaluation.named();
    let width = named.iter().map(|n| n.0.len()).max().unwrap_or(0).max(6);
    let mut lines: Vec<String> =
        named.iter().map(|(name, value)| format!("{name:<width$} {value:.4}")).collect();
    if per_class {
        let rows = names.iter().zip(evaluation.class_rows()).map(|(name, row)| {
            let mut cells = vec![shown(name).to_string()];
            cells.extend([row.ap, row.ap50, row.ap75, row.ar].map(number));
            cells.extend([row.truth, row.crowds, row.detections].map(|n| n.to_string()));
            cells
        });
        lines.push(format!(
            "\n{}",
            table(&["class", "AP", "AP50", "AP75", "AR", "truth", "crowds", "detections"], rows)
        ));
    }
    lines.join("\n")
}

/// Two evaluations and their difference.
fn side_by_side(a: &Evaluation, b: &Evaluation, names: &[String], per_class: bool) -> String {
    let row = |name: String, a: f64, b: f64| {
        let delta = if a < 0.0 || b < 0.0 { "-".to_owned() } else { format!("{:+.4}", b - a) };
        vec![name, number(a), number(b), delta]
    };
    let header = ["", "A", "B", "B - A"];
    let mut tables = vec![table(
        &header,
        a.named().into_iter().zip(b.named()).map(|((n, a), (_, b))| row(n, a, b)),
    )];
    if per_class {
        let rows = names.iter().zip(a.per_class().into_iter().zip(b.per_class()));
        tables.push(table(&header, rows.map(|(n, (a, b))| row(shown(n).to_string(), a, b))));
    }
    tables.join("\n\n")
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
