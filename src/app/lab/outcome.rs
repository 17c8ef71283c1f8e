//! The result of one row with one seed: a JSON file that can be shared, and from which a table is
//! made.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use dw_base::file::write_atomically;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::Config;
use crate::config::identity::{self, Change};
use crate::config::row::Row;
use crate::device::Precision;
use crate::train::log::jsonl;
use crate::{Error, Result};

/// A result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// Name of the row.
    pub row: String,
    /// `[row]` of its configuration.
    pub info: Row,
    /// `train.seed`.
    pub seed: u64,
    /// Metrics of the last evaluation by name: AP and AR from 0 to 1, and the statistics of weights
    /// that `eval.bag_images` enables.
    pub metrics: BTreeMap<String, f64>,
    /// Cost of the run.
    pub cost: Cost,
    /// How the row was changed for this data and machine.
    pub setup: Setup,
    /// The precision that `auto` stood for; `None` in results of older versions.
    #[serde(default)]
    pub precision: Option<Precision>,
    /// The data.
    pub data: Data,
    /// The configuration, without the folder of the data.
    pub config: Config,
}

/// Cost of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Number of steps.
    pub steps: u64,
    /// Seconds of all steps.
    pub train_s: f64,
    /// Seconds of all evaluations.
    pub eval_s: f64,
    /// Peak memory of rank 0, MiB: tensors on its GPU, or the memory of its process on a CPU.
    pub peak_memory_mib: f64,
}

/// How a row was run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    /// `--base`
    pub base: Option<String>,
    /// `--set`
    pub set: Vec<String>,
    /// `--launcher`
    pub launcher: Option<String>,
    /// Number of concurrent runs on the machine.
    pub jobs: usize,
    /// Version and revision of the program.
    pub version: String,
    /// Processor, and the GPU if there is one.
    pub machine: String,
}

/// The data of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Training split, with the number of its images and the fingerprint of the packed split.
    pub train: (String, usize, u32),
    /// Validation split, likewise.
    pub val: (String, usize, u32),
}

impl Outcome {
    /// Path of the result of a row with a seed.
    pub fn path(folder: &Path, row: &str, seed: u64) -> PathBuf {
        folder.join(format!("{row}-seed{seed}.json"))
    }

    /// Reads a result; `None` if there is no file.
    ///
    /// # Errors
    /// A file that is not a result.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("cannot read", path)(e)),
        };
        serde_json::from_str(&text).map(Some).map_err(|e| Error::data(path, "", e))
    }

    /// Writes the result.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::Bug(format!("cannot write a result as JSON: {e}")))?;
        write_atomically(path, |file| writeln!(file, "{text}"))
    }

    /// Checks that a finished run has the requested settings and data.
    ///
    /// # Errors
    /// The first difference, with the file.
    pub fn check(&self, path: &Path, config: &Config, data: &Data) -> Result<()> {
        let difference = match difference(&self.config, &without_folder(config)) {
            Some(change) => change.to_string(),
            None if self.data != *data => format!("data: {:?} -> {data:?}", self.data),
            None => return Ok(()),
        };
        Err(Error::Usage(format!(
            "{}: this row is finished, with other settings than those requested: {difference}\n\
             hint: request the same settings, or keep these results in another --out",
            path.display()
        )))
    }
}

/// The first difference between two configurations, among the settings that compared rows must
/// share.
pub fn difference(run: &Config, requested: &Config) -> Option<Change> {
    let (changes, may_change) = identity::changes(run, requested);
    // These may change when a run is resumed, but not between rows that are compared.
    let relevant =
        ["train.epochs", "train.max_steps", "train.images_per_rank", "train.accumulate", "eval."];
    let is_relevant = |c: &Change| relevant.iter().any(|k| c.key.starts_with(k));
    changes.into_iter().next().or_else(|| may_change.into_iter().find(is_relevant))
}

/// A configuration without the folder of the data, which differs from machine to machine.
pub fn without_folder(config: &Config) -> Config {
    let mut config = config.clone();
    config.data.shards = PathBuf::new();
    config
}

/// Metrics and cost of a finished run from its `metrics.jsonl`.
///
/// # Errors
/// A file that cannot be read, or that has no evaluation after the last step.
pub fn measure(file: &Path) -> Result<(BTreeMap<String, f64>, Cost)> {
    let rows = jsonl::read(file)?;
    let number = |row: &Map<String, Value>, key: &str| row.get(key).and_then(Value::as_f64);
    let sum = |key: &str| rows.iter().filter_map(|r| number(r, key)).sum::<f64>();
    let peak = rows.iter().filter_map(|r| number(r, "peak_memory_mib")).fold(0.0, f64::max);
    let steps = rows.iter().filter_map(|r| r.get("step")?.as_u64()).max().unwrap_or(0);
    let last = rows.iter().rev().find(|r| r.contains_key("AP"));
    let last = last.filter(|r| r.get("step").and_then(Value::as_u64) == Some(steps));
    let Some(last) = last else {
        return Err(Error::data(
            file,
            "",
            "expected an evaluation after the last step, found none",
        ));
    };
    let is_metric = |name: &str| ["AP", "AR", "bag_"].iter().any(|p| name.starts_with(p));
    let metrics = last.iter().filter(|(name, _)| is_metric(name));
    let metrics = metrics.filter_map(|(name, v)| Some((name.clone(), v.as_f64()?))).collect();
    let (train_s, eval_s) = (sum("step_s"), sum("eval_s"));
    Ok((metrics, Cost { steps, train_s, eval_s, peak_memory_mib: peak }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn outcome(config: &Config) -> Outcome {
        Outcome {
            precision: None,
            row: "full".into(),
            info: Row { title: "P × I".into(), paper: None, note: None },
            seed: 1,
            metrics: [("AP".to_owned(), 0.25)].into(),
            cost: Cost { steps: 4, train_s: 2.0, eval_s: 1.0, peak_memory_mib: 100.0 },
            setup: Setup::default(),
            data: Data { train: ("t".into(), 9, 7), val: ("v".into(), 3, 8) },
            config: without_folder(config),
        }
    }

    #[test]
    fn results_survive_the_file_and_are_checked_against_the_request() {
        let dir = tempfile::tempdir().unwrap();
        let path = Outcome::path(dir.path(), "full", 1);
        assert_eq!(Outcome::read(&path).unwrap(), None);
        let load = |sets: &[&str]| {
            let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
            config::load("tables/table5/01_full", &sets).unwrap()
        };
        let config = load(&["data.shards=/some/where"]);
        let result = outcome(&config);
        result.write(&path).unwrap();
        assert!(!std::fs::read_to_string(&path).unwrap().contains("/some/where"));
        let read = Outcome::read(&path).unwrap().unwrap();
        assert_eq!(read, result);
        read.check(&path, &load(&["data.shards=/else", "data.workers=3"]), &result.data).unwrap();
        for set in ["train.epochs=24", "assign.w_neg=none", "eval.nms_iou=0.5"] {
            let e = read.check(&path, &load(&[set]), &result.data).unwrap_err().to_string();
            assert!(e.contains(set.split('=').next().unwrap()), "{e}");
        }
        let other = Data { train: ("t".into(), 9, 6), ..result.data };
        assert!(read.check(&path, &config, &other).is_err());
    }

    #[test]
    fn a_run_without_its_last_evaluation_has_no_result() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("metrics.jsonl");
        let rows = "{\"step\":1,\"step_s\":2.0}\n{\"step\":1,\"AP\":0.1,\"eval_s\":1.0,\
                    \"peak_memory_mib\":70.0}\n{\"step\":2,\"step_s\":3.0}\n";
        std::fs::write(&file, rows).unwrap();
        assert!(measure(&file).unwrap_err().to_string().contains("after the last step"));
        let last = "{\"step\":2,\"AP\":0.2,\"bag_correlation\":-0.3,\"eval_s\":1.5,\
                    \"peak_memory_mib\":60.0}\n";
        std::fs::write(&file, format!("{rows}{last}")).unwrap();
        let (metrics, cost) = measure(&file).unwrap();
        assert_eq!((metrics["AP"], metrics["bag_correlation"], metrics.len()), (0.2, -0.3, 2));
        let expected = Cost { steps: 2, train_s: 5.0, eval_s: 2.5, peak_memory_mib: 70.0 };
        assert_eq!(cost, expected);
    }
}
