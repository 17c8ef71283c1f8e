//! `metrics.jsonl`: one JSON object per step and per evaluation. Steps and epochs count from 1, as
//! in log messages and in the names of checkpoints.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{EvalRecord, Sink, StepRecord};
use crate::{Error, Result};

/// Name of the file in a work directory.
pub const NAME: &str = "metrics.jsonl";

/// Appends rows. A row is written by a single `write` call, so readers see only complete rows,
/// except after a crash of the machine.
pub struct Metrics {
    file: File,
    path: PathBuf,
    /// Number of this attempt of the run, from 1.
    attempt: usize,
    /// Length of the complete rows, bytes.
    length: u64,
}

/// Renames an existing metrics file, for a run that starts from a checkpoint of another work
/// directory: the rows in the file belong to another run.
///
/// # Errors
/// A file that cannot be renamed.
pub fn start_over(path: &Path) -> Result<()> {
    if std::fs::metadata(path).is_ok_and(|m| m.len() > 0) { set_aside(path) } else { Ok(()) }
}

impl Metrics {
    /// Opens the file for attempt `attempt` (from 1) of a run whose first `start` steps are
    /// completed. Removes the rows of later steps, which the checkpoint does not include, and an
    /// incomplete last line. A run that starts from its first step keeps a file with evaluations
    /// under another name.
    ///
    /// # Errors
    /// A file that cannot be written, or a line that is not a JSON object.
    pub fn open(path: &Path, start: usize, attempt: usize) -> Result<Self> {
        if start == 0 {
            keep_evaluations(path)?;
        }
        let io = |e| Error::io("cannot open", path)(e);
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(io)?;
        let length = if start == 0 { 0 } else { length_up_to(path, start)? };
        file.set_len(length).map_err(Error::io("cannot truncate", path))?;
        Ok(Self { file, path: path.to_owned(), attempt, length })
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Adds the attempt to a row and appends it. After an error the file still ends with a complete
    /// row.
    fn append(&mut self, mut row: Map<String, Value>) -> Result<()> {
        row.insert("attempt".into(), self.attempt.into());
        let mut line = Value::Object(row).to_string();
        line.push('\n');
        let written = self.file.write_all(line.as_bytes());
        match written {
            Ok(()) => self.length += line.len() as u64,
            // An error of the truncation is ignored: the write error is reported, and resuming
            // truncates the file as well.
            Err(_) => drop(self.file.set_len(self.length)),
        }
        written.map_err(Error::io("cannot write", &self.path))
    }
}

impl Sink for Metrics {
    fn step(&mut self, r: &StepRecord) -> Result<()> {
        let mut row = Map::new();
        row.insert("step".into(), json!(r.step));
        row.insert("epoch".into(), json!(r.epoch));
        row.extend(r.numbers().into_iter().map(|(name, value)| (name.into(), json!(value))));
        row.insert("no_positive".into(), json!(u8::from(r.loss.without_positive())));
        self.append(row)
    }

    fn evaluation(&mut self, r: &EvalRecord) -> Result<()> {
        let mut row = Map::new();
        row.insert("step".into(), json!(r.step));
        row.insert("epoch".into(), json!(r.epoch));
        for (name, value) in &r.numbers {
            row.insert((*name).into(), json!(value));
        }
        row.insert("eval_s".into(), json!(r.eval_s));
        row.insert("peak_memory_mib".into(), json!(r.peak_memory_mib.round()));
        self.append(row)
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io("cannot sync", &self.path))
    }
}

/// Renames a file that has rows of evaluations to the first free `metrics-N.jsonl`: a user who
/// removes the checkpoints of a run and starts it again may still need its results.
fn keep_evaluations(path: &Path) -> Result<()> {
    // If the file cannot be read, the caller reports that when it opens the file.
    if !std::fs::read_to_string(path).is_ok_and(|text| text.contains("\"AP\":")) {
        return Ok(());
    }
    set_aside(path)
}

/// Renames the file to the first free `metrics-N.jsonl`.
fn set_aside(path: &Path) -> Result<()> {
    let name = |n| path.with_file_name(NAME.replace('.', &format!("-{n}.")));
    let mut n = 1;
    while name(n).exists() {
        n += 1;
    }
    std::fs::rename(path, name(n)).map_err(Error::io("cannot rename", path))?;
    tracing::info!("the metrics of the previous run are kept in {}", name(n).display());
    Ok(())
}

/// Length in bytes of the rows up to step `last`.
fn length_up_to(path: &Path, last: usize) -> Result<u64> {
    let text = std::fs::read_to_string(path).map_err(Error::io("cannot read", path))?;
    let mut length = 0;
    for (n, line) in text.split_inclusive('\n').enumerate().filter(|(_, l)| l.ends_with('\n')) {
        let row = parse(path, n, line)?;
        if row.get("step").and_then(Value::as_u64).is_some_and(|step| step > last as u64) {
            break;
        }
        length += line.len() as u64;
    }
    Ok(length)
}

/// Parses line `n` (from 0).
fn parse(path: &Path, n: usize, line: &str) -> Result<Map<String, Value>> {
    serde_json::from_str(line).map_err(|e| Error::data(path, format!("line {}", n + 1), e))
}

/// The rows of a metrics file, without an incomplete last line.
///
/// # Errors
/// A file that cannot be read, or a line that is not a JSON object.
pub fn read(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::system(&format!("cannot read {}", path.display()), &e, Error::Usage))?;
    let complete = text.rfind('\n').map_or("", |at| &text[..at]);
    complete.lines().enumerate().map(|(n, line)| parse(path, n, line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: usize) -> Map<String, Value> {
        serde_json::json!({"step": step, "loss": 0.5}).as_object().unwrap().clone()
    }

    #[test]
    fn a_new_run_keeps_the_evaluations_of_the_last_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let start_again = |text: &str| {
            std::fs::write(&path, text).unwrap();
            drop(Metrics::open(&path, 0, 2).unwrap());
            std::fs::read_to_string(&path).unwrap()
        };
        let evaluated = "{\"step\":1,\"AP\":0.5}\n";
        assert_eq!(start_again("{\"step\":1}\n") + &start_again(evaluated), "");
        assert_eq!(start_again(evaluated), "");
        for kept in ["metrics-1.jsonl", "metrics-2.jsonl"] {
            assert_eq!(std::fs::read_to_string(dir.path().join(kept)).unwrap(), evaluated);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn resuming_removes_rows_after_the_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.jsonl");
        let mut m = Metrics::open(&path, 0, 1).unwrap();
        (1..=5).for_each(|step| m.append(row(step)).unwrap());
        m.append(serde_json::json!({"step": 5, "AP": 0.1}).as_object().unwrap().clone()).unwrap();
        let incomplete = std::fs::read_to_string(&path).unwrap() + "{\"st";
        std::fs::write(&path, incomplete).unwrap();
        assert_eq!(read(&path).unwrap().len(), 6);
        let steps =
            || read(&path).unwrap().iter().map(|r| r["step"].as_u64().unwrap()).collect::<Vec<_>>();
        drop(Metrics::open(&path, 5, 2).unwrap());
        assert_eq!(steps(), [1, 2, 3, 4, 5, 5], "the evaluation after step 5 is kept");
        let mut m = Metrics::open(&path, 3, 3).unwrap();
        m.append(row(4)).unwrap();
        assert_eq!(steps(), [1, 2, 3, 4]);
        assert_eq!(read(&path).unwrap()[3]["attempt"], 3);
        drop(Metrics::open(&path, 0, 1).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
    }
}
