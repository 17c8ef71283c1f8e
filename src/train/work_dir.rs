//! The settings files in a work directory: `config.toml` and `settings.txt` of the first attempt,
//! `config-2.toml` and `settings-2.txt` of the second, and so on. They are never overwritten.

use std::io::Write;
use std::path::{Path, PathBuf};

use dw_base::file::write_atomically;

use crate::Result;

/// Path of a settings file of an attempt (from 1), for example `config-2.toml`.
fn numbered(dir: &Path, stem: &str, extension: &str, attempt: usize) -> PathBuf {
    dir.join(if attempt == 1 {
        format!("{stem}.{extension}")
    } else {
        format!("{stem}-{attempt}.{extension}")
    })
}

/// Number of attempts whose settings are in `dir`.
pub fn attempts(dir: &Path) -> usize {
    let mut attempts = 0;
    while numbered(dir, "config", "toml", attempts + 1).exists() {
        attempts += 1;
    }
    attempts
}

/// Writes the settings of a new attempt: the resolved configuration as TOML, and the readable
/// table. Returns the number of the attempt, from 1.
///
/// # Errors
/// A file that cannot be written.
pub fn record(dir: &Path, config: &str, table: &str) -> Result<usize> {
    let attempt = attempts(dir) + 1;
    for (stem, extension, text) in [("settings", "txt", table), ("config", "toml", config)] {
        let path = numbered(dir, stem, extension, attempt);
        write_atomically(&path, |file| file.write_all(text.as_bytes()))?;
    }
    Ok(attempt)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn earlier_settings_are_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        for n in 1..=3 {
            assert_eq!(record(dir.path(), &format!("attempt = {n}"), "table").unwrap(), n);
        }
        let text = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(
            (text("config.toml"), text("config-3.toml")),
            ("attempt = 1".into(), "attempt = 3".into())
        );
    }
}
