//! Tables: sets of configurations that are compared. A built-in table has the rows of a table of
//! the DW paper; a folder of configurations is a table of the user's own.

use std::collections::BTreeSet;
use std::path::Path;

use crate::config::row::Row;
use crate::config::{self, BUILT_IN};
use crate::{Error, Result};

/// Prefix of the configuration names of the rows of built-in tables.
const PREFIX: &str = "tables/";

/// A table.
#[derive(Debug)]
pub struct Table {
    /// Name, also of the folder of its results.
    pub name: String,
    /// Rows in order; differences are taken against the first one.
    pub rows: Vec<TableRow>,
}

/// A row of a table.
#[derive(Debug, Clone)]
pub struct TableRow {
    /// The name of its configuration, without the number that gives the order.
    pub name: String,
    /// Name or path of its configuration.
    pub config: String,
    /// Its `[row]` section.
    pub info: Row,
}

/// Names of the built-in tables.
pub fn names() -> Vec<&'static str> {
    let table = |name: &'static str| Some(name.strip_prefix(PREFIX)?.split_once('/')?.0);
    let names: BTreeSet<_> = BUILT_IN.iter().filter_map(|(name, _)| table(name)).collect();
    names.into_iter().collect()
}

impl Table {
    /// Finds a built-in table by name, or a folder of configurations.
    ///
    /// # Errors
    /// No such table or folder, a folder without configurations, or a configuration that cannot be
    /// read.
    pub fn find(name: &str) -> Result<Self> {
        let prefix = format!("{PREFIX}{name}/");
        let built_in = BUILT_IN.iter().filter(|(n, _)| n.starts_with(&prefix));
        let mut configs: Vec<String> = built_in.map(|(n, _)| (*n).to_owned()).collect();
        let folder = Path::new(name);
        if configs.is_empty() {
            if !folder.is_dir() {
                return Err(Error::Usage(format!(
                    "`{name}` is neither a table nor a folder of configurations\nhint: tables are \
                     {}",
                    names().join(", ")
                )));
            }
            configs = configurations(folder)?;
        }
        let rows = configs.into_iter().map(TableRow::read).collect::<Result<Vec<_>>>()?;
        let mut seen = BTreeSet::new();
        if let Some(twice) = rows.iter().find(|r| !seen.insert(r.name.as_str())) {
            return Err(Error::Usage(format!("table `{name}`: two rows `{}`", twice.name)));
        }
        Ok(Self { name: folder_name(name)?, rows })
    }

    /// The rows with these names, in the table's order; all rows if no name is given.
    ///
    /// # Errors
    /// A name that no row has.
    pub fn select(&self, names: &[String]) -> Result<Vec<&TableRow>> {
        if let Some(unknown) = names.iter().find(|n| self.rows.iter().all(|r| r.name != **n)) {
            let known: Vec<&str> = self.rows.iter().map(|r| r.name.as_str()).collect();
            return Err(Error::Usage(format!(
                "table `{}` has no row `{unknown}`\nhint: its rows are {}",
                self.name,
                known.join(", ")
            )));
        }
        let is_selected = |r: &&TableRow| names.is_empty() || names.contains(&r.name);
        Ok(self.rows.iter().filter(is_selected).collect())
    }
}

impl TableRow {
    fn read(config: String) -> Result<Self> {
        let file = config.rsplit('/').next().unwrap_or(&config);
        let stem = file.strip_suffix(".toml").unwrap_or(file);
        let name = stem.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start_matches('_');
        let name = if name.is_empty() { stem } else { name }.to_owned();
        let without = || Row { title: name.clone(), paper: None, note: None };
        let info = config::row(&config)?.unwrap_or_else(without);
        Ok(Self { name, config, info })
    }
}

/// A name for the folder of results: the last component of the path, or, for a path such as `..`,
/// that of the folder that it resolves to.
fn folder_name(path: &str) -> Result<String> {
    let path = Path::new(path);
    if let Some(name) = path.file_name() {
        return Ok(name.to_string_lossy().into_owned());
    }
    let absolute = std::fs::canonicalize(path).map_err(Error::io("cannot find", path))?;
    let name = absolute.file_name().map(|n| n.to_string_lossy().into_owned());
    name.ok_or_else(|| {
        Error::Usage(format!("{}: expected a folder with a name", absolute.display()))
    })
}

/// The paths of the numbered TOML files of a folder, sorted. Others may be bases of the rows.
fn configurations(folder: &Path) -> Result<Vec<String>> {
    let mut paths = vec![];
    for entry in std::fs::read_dir(folder).map_err(Error::io("cannot read", folder))? {
        let path = entry.map_err(Error::io("cannot read", folder))?.path();
        if path.extension().is_none_or(|e| e != "toml") {
            continue;
        }
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with(|c: char| c.is_ascii_digit()) {
            paths.push(path.to_string_lossy().into_owned());
        } else {
            tracing::info!("{}: not a row: its name has no number", path.display());
        }
    }
    if paths.is_empty() {
        return Err(Error::Usage(format!(
            "{}: expected configurations NN_NAME.toml, one for each row; found none",
            folder.display()
        )));
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_tables_have_rows_that_resolve() {
        assert!(names().len() >= 7, "{:?}", names());
        for name in names() {
            let table = Table::find(name).unwrap();
            assert!(table.rows.len() > 3, "{name}");
            for row in &table.rows {
                let config = config::load(&row.config, &[]).unwrap();
                assert!(config.eval.every_epochs > 0, "{}", row.config);
                assert_ne!(row.info.title, row.name, "{} has no title", row.config);
            }
        }
        let table = Table::find("table5").unwrap();
        assert_eq!(table.rows[0].name, "full");
        let two = table.select(&["none".into(), "full".into()]).unwrap();
        assert_eq!(two.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["full", "none"]);
        let e = table.select(&["entire".into()]).unwrap_err().to_string();
        assert!(e.contains("`entire`") && e.contains("one_minus_pos"), "{e}");
        assert!(Table::find("table0").unwrap_err().to_string().contains("table5"));
    }

    #[test]
    fn a_folder_is_a_table_and_its_base_can_be_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("mine");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("2_b.toml"), "base = \"atss_r50_fpn_1x\"").unwrap();
        std::fs::write(folder.join("1_a.toml"), "[assign]\nbeta = 4").unwrap();
        std::fs::write(folder.join("notes.txt"), "").unwrap();
        std::fs::write(folder.join("base.toml"), "base = \"smoke\"").unwrap();
        let table = Table::find(folder.to_str().unwrap()).unwrap();
        assert_eq!((table.name.as_str(), table.rows.len()), ("mine", 2));
        assert_eq!((table.rows[0].name.as_str(), table.rows[1].name.as_str()), ("a", "b"));
        for row in &table.rows {
            let over = config::load_over(&row.config, "smoke", &[]).unwrap();
            let own = config::load(&row.config, &[]).unwrap();
            assert_eq!(over.assign, own.assign);
            assert_eq!((over.model.channels, over.data.short_side), (32, 96));
        }
        let inside = format!("{}/mine/..", dir.path().display());
        let parent = dir.path().file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(folder_name(&inside).unwrap(), parent, "results stay in their folder");
        assert!(folder_name("/").is_err());
        std::fs::write(folder.join("3_c.toml"), "[row]\ntitle = \"c\"\nAP = 3").unwrap();
        let e = Table::find(folder.to_str().unwrap()).unwrap_err().to_string();
        assert!(e.contains("3_c.toml") && e.contains("`row`") && e.contains("AP"), "{e}");
    }
}
