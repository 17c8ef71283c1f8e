//! Comparison with pycocotools on one golden case: precision, recall and scores bit by bit, the 12
//! numbers, the numbers of each class, and the counts.
#![allow(dead_code, reason = "not every test that shares this folder checks golden cases")]

use std::path::Path;

use dw_metric::{MetricConfig, evaluate, json};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn sha256(table: &[f64]) -> String {
    let mut sha = Sha256::new();
    for v in table {
        sha.update(v.to_le_bytes());
    }
    sha.finalize().iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().concat()
}

/// Evaluates a case (`gt.json`, `dt.json`) and compares the result with its `expected.json`.
pub fn check(case: &Path) -> Result<(), String> {
    let mut warnings = vec![];
    let truth = json::truth(&case.join("gt.json"), &mut warnings).map_err(|e| e.to_string())?;
    let detections =
        json::results(&case.join("dt.json"), &truth, &mut warnings).map_err(|e| e.to_string())?;
    let text = std::fs::read_to_string(case.join("expected.json")).map_err(|e| e.to_string())?;
    let expected: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    let problem = truth.problem(&detections);
    let e = evaluate(&problem, &MetricConfig::default());
    let same = |what: &str, found: &Value, wanted: &Value| {
        if found == wanted {
            Ok(())
        } else {
            Err(format!("{what}: expected {wanted}, found {found}"))
        }
    };
    // Counts first: they narrow down a failure the most.
    for (a, area) in e.config.areas.iter().enumerate() {
        let (counts, wanted) = (e.counts(a), &expected["counts_maxdets100"][&area.name]);
        same(&format!("npos of {}", area.name), &counts.positives.into(), &wanted["npos"])?;
        for (name, found) in [("tp", counts.tp), ("fp", counts.fp), ("ignored", counts.ignored)] {
            same(&format!("{name} of {}", area.name), &found.into(), &wanted[name])?;
        }
    }
    for (name, table) in
        [("precision", e.precision()), ("recall", e.recall()), ("scores", e.scores())]
    {
        same(&format!("hash of {name}"), &sha256(&table).into(), &expected[name]["sha256_f64le"])?;
    }
    let equal = |what: &str, found: f64, wanted: &Value| {
        // The tables are compared bit by bit; means may differ by the order of summation.
        if wanted.as_f64().is_some_and(|w| (w - found).abs() <= 1e-12) {
            Ok(())
        } else {
            Err(format!("{what}: expected {wanted}, found {found}"))
        }
    };
    for (name, found) in e.summary().named() {
        equal(name, found, &expected["stats"][name])?;
    }
    let rows = expected["per_category"].as_array().ok_or("no `per_category`")?;
    same("categories", &rows.len().into(), &truth.categories.len().into())?;
    for ((row, found), &id) in rows.iter().zip(e.class_rows()).zip(&truth.categories) {
        same("id", &id.into(), &row["id"])?;
        for (name, found) in
            [("AP", found.ap), ("AP50", found.ap50), ("AP75", found.ap75), ("AR100", found.ar)]
        {
            equal(&format!("{name} of category {id}"), found, &row[name])?;
        }
        same(&format!("n_gt of category {id}"), &found.truth.into(), &row["n_gt"])?;
        same(&format!("n_crowd of category {id}"), &found.crowds.into(), &row["n_crowd"])?;
    }
    Ok(())
}
