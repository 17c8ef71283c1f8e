//! The classes of a weight file: options that `dw-detect` and `dw-export` share.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use dw_base::text::shown;

use super::saved::Saved;
use crate::data::Dataset;
use crate::data::dataset::choose_split;
use crate::{Error, Result};

/// Where the classes of a weight file come from.
#[derive(Debug, clap::Args)]
pub struct ClassArgs {
    /// Class names of a weight file, one per line; category ids then count from 1
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    pub classes: Option<PathBuf>,
    /// Folder of shards that has the classes of a weight file
    #[arg(long, value_name = "OUT")]
    pub data: Option<PathBuf>,
}

impl ClassArgs {
    /// Sets the classes of a weight file.
    ///
    /// # Errors
    /// A checkpoint, which has its own; a file or folder that cannot be read; another number of
    /// classes than the file names.
    pub fn apply(&self, saved: &mut Saved) -> Result<()> {
        let Some(path) = self.classes.as_ref().or(self.data.as_ref()) else { return Ok(()) };
        if !saved.is_file() {
            return Err(Error::Usage(format!(
                "{}: --classes and --data are for weight files; a checkpoint contains its classes",
                path.display()
            )));
        }
        if let Some(file) = &self.classes {
            return saved.set_class_names(&class_names(file)?);
        }
        let configured = &saved.config.data.val_split;
        let split = choose_split(path, configured, "val2017", "val", "data.val_split")?;
        let data = Dataset::open(path, &split, 0, false)?;
        saved.use_categories_of(data.categories())
    }
}

/// The lines of a file of class names.
fn class_names(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).map_err(Error::io("cannot read", path))?;
    // Editors on Windows put a byte order mark in front.
    let text = text.trim_start_matches('\u{feff}');
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    let names: Vec<String> = lines.map(str::to_owned).collect();
    if names.is_empty() {
        return Err(Error::data(path, "", "expected class names, one per line; found none"));
    }
    let mut seen = HashSet::new();
    if let Some(twice) = names.iter().find(|name| !seen.insert(*name)) {
        let problem = format!("expected different class names, found `{}` twice", shown(twice));
        return Err(Error::data(path, "", problem));
    }
    Ok(names)
}
