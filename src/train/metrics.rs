//! `metrics.jsonl`: one object a step, one an evaluation.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Writes rows; a row is one `write` call, so that a reader never sees half of one unless the machine died.
pub struct Metrics {
    file: File,
    path: PathBuf,
    /// Length in whole rows.
    whole: u64,
}

impl Metrics {
    /// Opens the file; `resume` goes on after its last whole line, else it starts empty.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn open(path: &Path, resume: bool) -> Result<Self> {
        let io = |e| Error::io("cannot open", path)(e);
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(io)?;
        let mut whole = 0;
        if resume {
            let text = std::fs::read(path).map_err(Error::io("cannot read", path))?;
            whole = text.iter().rposition(|&b| b == b'\n').map_or(0, |at| at as u64 + 1);
        }
        file.set_len(whole).map_err(Error::io("cannot cut", path))?;
        Ok(Self { file, path: path.to_owned(), whole })
    }

    /// Appends a row.
    ///
    /// # Errors
    /// A full disk; the file then still ends with a whole row.
    pub fn row(&mut self, row: &Map<String, Value>) -> Result<()> {
        let mut line = Value::Object(row.clone()).to_string();
        line.push('\n');
        let written = self.file.write_all(line.as_bytes());
        match written {
            Ok(()) => self.whole += line.len() as u64,
            // Whether this succeeds or not, the first error is the one to tell; a resume cuts the file, too.
            Err(_) => drop(self.file.set_len(self.whole)),
        }
        written.map_err(Error::io("cannot write", &self.path))
    }
}

/// Rows of a file; a cut last line is left out.
///
/// # Errors
/// A missing file or a line that is not an object.
pub fn read(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let text = fs_err::read_to_string(path).map_err(|e| Error::Usage(format!("cannot read metrics: {e}")))?;
    let whole = text.rfind('\n').map_or("", |at| &text[..at]);
    whole
        .lines()
        .enumerate()
        .map(|(n, line)| serde_json::from_str(line).map_err(|e| Error::Data(format!("{}: line {}: {e}", path.display(), n + 1))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resume_cuts_a_half_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.jsonl");
        fs_err::write(&path, "{\"step\":0}\n{\"st").unwrap();
        assert_eq!(read(&path).unwrap().len(), 1);
        let mut m = Metrics::open(&path, true).unwrap();
        let row = serde_json::json!({"step": 1, "loss": 0.1});
        m.row(row.as_object().unwrap()).unwrap();
        assert_eq!(fs_err::read_to_string(&path).unwrap(), "{\"step\":0}\n{\"step\":1,\"loss\":0.1}\n");
        Metrics::open(&path, false).unwrap();
        assert_eq!(fs_err::read_to_string(&path).unwrap(), "");
    }
}
