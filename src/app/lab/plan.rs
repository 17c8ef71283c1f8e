//! Which runs a request needs, and which of them are finished.

use std::path::PathBuf;

use toml::Value;

use super::outcome::{Data, Outcome, difference, without_folder};
use super::table::{Table, TableRow};
use crate::app::train;
use crate::config::{self, Config};
use crate::train::checkpoint;
use crate::{Error, Result};

/// What `dw-lab run` is asked for.
#[derive(Debug, Clone, clap::Args)]
pub struct Request {
    /// Name of a table, or a folder of configurations
    pub table: String,
    /// Rows [default: all]
    #[arg(long, value_delimiter = ',', value_name = "ROW,...")]
    pub rows: Vec<String>,
    /// Configuration that the rows are based on, instead of the one for COCO
    #[arg(long, value_name = "CONFIG")]
    pub base: Option<String>,
    /// Set a configuration key in every row, for example train.images_per_rank=16 (repeatable)
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    pub set: Vec<String>,
    /// Folder of shards (`data.shards`)
    #[arg(long, value_name = "OUT")]
    pub data: Option<PathBuf>,
    /// Folder of results
    #[arg(long, value_name = "DIR", default_value = "lab")]
    pub out: PathBuf,
    /// Number of seeds
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub seeds: u64,
}

/// File name of the configuration of a run, in its folder.
pub const CONFIG: &str = "config.toml";
/// Name of the work directory of `dw-train`, in the folder of a run.
pub const WORK: &str = "work";

/// A row with a seed.
#[derive(Debug, Clone)]
pub struct LabRun {
    /// The row.
    pub row: TableRow,
    /// Seed.
    pub seed: u64,
    /// Its complete configuration.
    pub config: Config,
    /// Its data.
    pub data: Data,
    /// File of the result.
    pub result: PathBuf,
}

impl LabRun {
    /// How messages name it.
    pub fn name(&self) -> String {
        format!("{} seed {}", self.row.name, self.seed)
    }

    /// Folder of its log and of the work directory of `dw-train`.
    pub fn folder(&self) -> PathBuf {
        self.result.with_extension("")
    }
}

/// The runs of a request.
#[derive(Debug)]
pub struct LabPlan {
    /// Name of the table.
    pub table: String,
    /// Runs that are not finished: all rows with the first seed, then all with the next one, so
    /// that the rows of an incomplete table can be compared.
    pub open: Vec<LabRun>,
    /// Results of the finished runs.
    pub finished: Vec<Outcome>,
}

/// Resolves a request.
///
/// # Errors
/// An unknown table or row, a row whose configuration is not valid or that is never evaluated, data
/// that cannot be opened, a finished or interrupted run with other settings.
pub fn plan(request: &Request) -> Result<LabPlan> {
    if let Some(set) = request.set.iter().find(|s| s.trim_start().starts_with("train.seed")) {
        return Err(Error::Usage(format!(
            "--set {set}: the seeds of a row are 0 to N-1, from --seeds N"
        )));
    }
    let table = Table::find(&request.table)?;
    let folder = request.out.join(&table.name);
    let mut rows = vec![];
    for row in table.select(&request.rows)? {
        let (config, data) = resolve(row, request)?;
        rows.push((row.clone(), config, data));
    }
    warn_of_replaced(&rows, request);
    let (mut open, mut finished) = (vec![], vec![]);
    for seed in 0..request.seeds {
        for (row, config, data) in &rows {
            let mut config = config.clone();
            config.train.seed = seed;
            let result = Outcome::path(&folder, &row.name, seed);
            let (row, data) = (row.clone(), data.clone());
            if let Some(outcome) = Outcome::read(&result)? {
                outcome.check(&result, &config, &data)?;
                finished.push(outcome);
            } else {
                let run = LabRun { row, seed, config, data, result };
                check_interrupted(&run)?;
                open.push(run);
            }
        }
    }
    Ok(LabPlan { table: table.name, open, finished })
}

/// Warns of options `--set` with a key that distinguishes the rows.
fn warn_of_replaced(rows: &[(TableRow, Config, Data)], request: &Request) {
    if request.set.is_empty() {
        return;
    }
    // A row may be valid only with an option.
    let own = |row| Value::try_from(load(row, request, &[]).ok()?).ok();
    let own: Vec<Option<Value>> = rows.iter().map(|(row, ..)| own(row)).collect();
    for set in &request.set {
        let key = set.split('=').next().unwrap_or_default().trim();
        let value = |config: &Option<Value>| {
            key.split('.').try_fold(config.clone()?, |at, part| at.get(part).cloned())
        };
        let values: Vec<Option<Value>> = own.iter().map(value).collect();
        if let Some(other) = values.iter().position(|v| *v != values[0]) {
            tracing::warn!(
                "--set {set}: replaces different values of `{key}`, as in the rows {} and {}",
                rows[0].0.name,
                rows[other].0.name
            );
        }
    }
}

/// Checks that an interrupted run with a checkpoint was started with the requested settings.
///
/// # Errors
/// The first setting that differs.
pub fn check_interrupted(run: &LabRun) -> Result<()> {
    let file = run.folder().join(CONFIG);
    let Ok(text) = std::fs::read_to_string(&file) else { return Ok(()) };
    if checkpoint::newest_step(&run.folder().join(WORK).join("checkpoints"))?.is_none() {
        return Ok(());
    }
    let started = without_folder(&config::from_toml(&text, &file)?);
    let Some(change) = difference(&started, &without_folder(&run.config)) else { return Ok(()) };
    Err(Error::Usage(format!(
        "{}: this run was interrupted, with other settings than those requested: {change}\n\
         hint: request the same settings, use another --out, or remove {} to start the run again",
        run.name(),
        run.folder().display()
    )))
}

/// The configuration of a row with `--base` and some options `--set`.
fn load(row: &TableRow, request: &Request, sets: &[String]) -> Result<Config> {
    match &request.base {
        Some(base) => config::load_over(&row.config, base, sets),
        None => config::load(&row.config, sets),
    }
}

/// The configuration of a row, and its data.
fn resolve(row: &TableRow, request: &Request) -> Result<(Config, Data)> {
    let mut config = load(row, request, &request.set)?;
    if let Some(data) = &request.data {
        config.data.shards.clone_from(data);
    }
    config.resolve();
    if config.eval.every_epochs == 0 {
        return Err(Error::Usage(format!(
            "row `{}`: `eval.every_epochs`: expected at least 1, found 0: without an evaluation \
             the row has no result",
            row.name
        )));
    }
    let splits = train::Data::open(&mut config)?;
    let describe =
        |d: &crate::data::Dataset| (d.split.meta.split.clone(), d.len(), d.split.fingerprint());
    let (train, val) = (describe(&splits.train), splits.val.as_ref().map(describe));
    let val = val.ok_or_else(|| Error::Bug("a run that evaluates has a split for it".into()))?;
    Ok((config, Data { train, val }))
}
