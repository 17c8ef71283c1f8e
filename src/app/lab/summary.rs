//! The finished runs of a table, row by row.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::outcome::{Outcome, Setup};
use super::statistics::Estimate;
use super::table::{Table, TableRow};
use crate::config::row::Paper;
use crate::{Error, Result};

/// A table with results.
#[derive(Debug)]
pub struct Summary {
    /// Name of the table.
    pub name: String,
    /// Rows in order.
    pub rows: Vec<SummaryRow>,
}

/// A row with its runs.
#[derive(Debug)]
pub struct SummaryRow {
    /// Title.
    pub title: String,
    /// Published numbers, percent.
    pub paper: Option<Paper>,
    /// What a reader must know.
    pub note: Option<String>,
    /// Finished runs by seed.
    pub runs: BTreeMap<u64, Outcome>,
}

impl SummaryRow {
    /// The values of a metric, percent, in the order of the seeds. COCO's -1 (no ground truth of
    /// that size) is left out.
    pub fn values(&self, metric: &str) -> Vec<f64> {
        let value = |o: &Outcome| o.metrics.get(metric).copied().filter(|v| *v >= 0.0);
        self.runs.values().filter_map(value).map(|v| 100.0 * v).collect()
    }

    /// Mean of a metric over the seeds, percent.
    pub fn mean(&self, metric: &str) -> Option<Estimate> {
        Estimate::of(&self.values(metric))
    }

    /// Differences of a metric to another row, percent, for the seeds that both rows have.
    pub fn differences(&self, metric: &str, other: &Self) -> Vec<f64> {
        let value = |o: &Outcome| o.metrics.get(metric).copied().filter(|v| *v >= 0.0);
        let pairs = self.runs.iter().filter_map(|(seed, run)| Some((run, other.runs.get(seed)?)));
        pairs.filter_map(|(a, b)| Some(100.0 * (value(a)? - value(b)?))).collect()
    }

    /// Mean of a cost over the seeds.
    pub fn mean_cost(&self, cost: impl Fn(&Outcome) -> f64) -> Option<f64> {
        Estimate::of(&self.runs.values().map(cost).collect::<Vec<_>>()).map(|e| e.mean)
    }
}

impl Summary {
    /// Reads the finished runs of a table.
    ///
    /// # Errors
    /// An unknown table, a damaged file, or no finished run.
    pub fn read(table: &str, out: &Path) -> Result<Self> {
        let table = Table::find(table)?;
        let folder = out.join(&table.name);
        let rows = table.rows.iter().map(|r| row(r, &folder)).collect::<Result<Vec<_>>>()?;
        if rows.iter().all(|r| r.runs.is_empty()) {
            return Err(Error::Usage(format!(
                "{}: expected finished runs of {}, found none\nhint: `dw-lab run {}` makes them; \
                 --out names another folder",
                folder.display(),
                table.name,
                table.name
            )));
        }
        Ok(Self { name: table.name, rows })
    }

    /// All finished runs.
    pub fn runs(&self) -> impl Iterator<Item = &Outcome> {
        self.rows.iter().flat_map(|r| r.runs.values())
    }

    /// What the runs have in common, or differ in, one line each: setup, data, versions, machines.
    pub fn facts(&self) -> Vec<String> {
        let all = |f: &dyn Fn(&Outcome) -> String| self.runs().map(f).collect::<BTreeSet<_>>();
        let lines = |name: &str, values: BTreeSet<String>| {
            let differ = if values.len() > 1 { " (the runs differ)" } else { "" };
            format!("{name}{differ}: {}", values.into_iter().collect::<Vec<_>>().join("; "))
        };
        let data = |o: &Outcome| {
            let [train, val] = [&o.data.train, &o.data.val]
                .map(|(name, images, pack)| format!("{name} ({images} images, pack {pack:08x})"));
            format!("{train}, {val}")
        };
        let schedule = |o: &Outcome| {
            format!(
                "{} epochs, {} steps of {} images a rank, precision {}",
                o.config.train.epochs,
                o.cost.steps,
                o.config.train.global_batch(1),
                o.precision.unwrap_or(o.config.train.precision).name()
            )
        };
        vec![
            lines("Settings", all(&|o| settings(&o.setup))),
            lines("Data", all(&data)),
            lines("Schedule", all(&schedule)),
            lines("Version", all(&|o| o.setup.version.clone())),
            lines("Machine", all(&|o| format!("{}, {} at a time", o.setup.machine, o.setup.jobs))),
        ]
    }
}

/// A row with its finished runs in a folder.
fn row(row: &TableRow, folder: &Path) -> Result<SummaryRow> {
    let mut runs = BTreeMap::new();
    for seed in seeds(&row.name, folder) {
        if let Some(outcome) = Outcome::read(&Outcome::path(folder, &row.name, seed))? {
            runs.insert(seed, outcome);
        }
    }
    let (title, note) = (row.info.title.clone(), row.info.note.clone());
    Ok(SummaryRow { title, paper: row.info.paper, note, runs })
}

/// The seeds for which a row has result files; none if there is no folder.
fn seeds(row: &str, folder: &Path) -> Vec<u64> {
    let prefix = format!("{row}-seed");
    let Ok(entries) = std::fs::read_dir(folder) else { return vec![] };
    let seed = |name: &str| name.strip_prefix(&prefix)?.strip_suffix(".json")?.parse().ok();
    entries.filter_map(|e| seed(&e.ok()?.file_name().to_string_lossy())).collect()
}

/// The options that changed the rows.
fn settings(setup: &Setup) -> String {
    let mut words = vec![];
    words.extend(setup.base.as_ref().map(|b| format!("--base {b}")));
    words.extend(setup.set.iter().map(|s| format!("--set {s}")));
    words.extend(setup.launcher.as_ref().map(|l| format!("--launcher \"{l}\"")));
    if words.is_empty() { "as in the table".into() } else { words.join(" ") }
}
