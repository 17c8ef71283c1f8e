//! The files that a start of a run leaves in its work directory, beside metrics and checkpoints:
//! `config.toml` and `settings.txt` of the first, `config-2.toml` and `settings-2.txt` of the second,
//! and so on. None is ever rewritten.

use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::{Error, Result};

/// Name of a file of start `attempt`, as `config-2.toml`.
fn numbered(dir: &Path, stem: &str, ending: &str, attempt: usize) -> PathBuf {
    dir.join(if attempt == 1 {
        format!("{stem}.{ending}")
    } else {
        format!("{stem}-{attempt}.{ending}")
    })
}

/// Starts that have left their settings in `dir`.
pub fn attempts(dir: &Path) -> usize {
    let mut found = 0;
    while numbered(dir, "config", "toml", found + 1).exists() {
        found += 1;
    }
    found
}

/// Writes the settings of a further start: the resolved configuration as TOML, and the table for
/// people. Returns the number of the start, from 1.
///
/// # Errors
/// A folder that cannot be written.
pub fn record(dir: &Path, config: &str, table: &str) -> Result<usize> {
    let attempt = attempts(dir) + 1;
    for (stem, ending, text) in [("settings", "txt", table), ("config", "toml", config)] {
        let path = numbered(dir, stem, ending, attempt);
        fs::write(&path, text).map_err(Error::io("cannot write", &path))?;
    }
    Ok(attempt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_settings_are_never_rewritten() {
        let dir = tempfile::tempdir().unwrap();
        for n in 1..=3 {
            assert_eq!(record(dir.path(), &format!("start = {n}"), "table").unwrap(), n);
        }
        let text = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(
            (text("config.toml"), text("config-3.toml")),
            ("start = 1".into(), "start = 3".into())
        );
    }
}
