//! Which checkpoint a run goes on from, and whether it is a checkpoint of this run.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dw_launch::World;

use super::checkpoint::{self, Checkpoint};
use crate::app;
use crate::config::Config;
use crate::config::identity::{Change, changes};
use crate::data::Dataset;
use crate::data::dataset::same_categories;
use crate::error::{Error, Result};

/// Which checkpoint to go on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// The newest of the work directory, if there is one.
    Auto,
    /// Start anew.
    None,
    /// This one.
    Path(PathBuf),
}

impl std::str::FromStr for Resume {
    type Err = std::convert::Infallible;
    fn from_str(s: &str) -> std::result::Result<Self, Self::Err> {
        Ok(match s {
            "auto" => Self::Auto,
            "none" => Self::None,
            path => Self::Path(path.into()),
        })
    }
}

/// What another rank's file system may take to show what rank 0 sees (attribute caches of NFS hold for a minute).
const APPEARS: Duration = Duration::from_secs(90);

/// The checkpoint to go on from, which rank 0 chooses for all.
///
/// # Errors
/// No such checkpoint, a damaged one, a lost peer.
pub fn choose(resume: &Resume, checkpoints: &Path, world: &World) -> Result<Option<Checkpoint>> {
    let mine = match resume {
        _ if world.rank() > 0 => None,
        Resume::None => None,
        Resume::Auto => checkpoint::newest(checkpoints),
        Resume::Path(path) => Some(app::find_checkpoint(path)?),
    };
    let path =
        mine.as_ref().map(|c| c.path.as_os_str().as_encoded_bytes().to_vec()).unwrap_or_default();
    let path = world.broadcast_bytes(path, "checkpoint")?;
    if world.rank() == 0 || path.is_empty() {
        return Ok(mine);
    }
    // SAFETY: rank 0's own encoding of a path, by the same program.
    let path = PathBuf::from(unsafe { std::ffi::OsString::from_encoded_bytes_unchecked(path) });
    let began = Instant::now();
    while !checkpoint::is_whole(&path) && began.elapsed() < APPEARS {
        std::thread::sleep(Duration::from_millis(200));
    }
    checkpoint::open(&path).map(Some)
}

/// Compares the run that wrote `c` with what is asked for, key by key, and returns the global batch
/// (images) to go on with. Settings that decide the result must be the same, unless `with_changes`.
/// What may change is logged.
///
/// # Errors
/// The keys that differ (exit code 2), other categories (3), or ranks that cannot share the batch.
pub fn check(
    c: &Checkpoint,
    train: &Dataset,
    asked: &Config,
    world: &World,
    with_changes: bool,
) -> Result<usize> {
    let (ranks, lead) = (world.size(), world.rank() == 0);
    same_categories(&c.state.categories, train.categories(), "the checkpoint", "the data")?;
    let (mut decide, may) = changes(&c.config, asked);
    let data = train.split.fingerprint();
    if c.state.data != data && !decide.iter().any(|d| d.key == "data.train_split") {
        let (old, new) = (format!("{:08x}", c.state.data), format!("{data:08x}"));
        decide.push(Change {
            key: "training data (fingerprint of the packed split)".into(),
            old,
            new,
        });
    }
    let (kept, wanted) = (c.state.global_batch, asked.train.images_per_rank * ranks);
    // The same images_per_rank on another number of ranks is the same run shared otherwise.
    let batch = if wanted == kept || asked.train.images_per_rank == c.config.train.images_per_rank {
        kept
    } else {
        let key = "train.images_per_rank x ranks (global batch)".into();
        decide.push(Change { key, old: kept.to_string(), new: wanted.to_string() });
        wanted
    };
    let list = |changes: &[Change]| {
        let lines: Vec<String> = changes.iter().map(|c| format!("\n  {c}")).collect();
        lines.concat()
    };
    if !decide.is_empty() && !with_changes {
        return Err(Error::Usage(format!(
            "cannot go on from {}: it is a checkpoint of a run with other settings:{}\nhint: start with that run's settings ({}), begin a new run with another --work-dir, or go on all the same with --resume-with-changes",
            c.path.display(),
            list(&decide),
            c.path.join("config.toml").display()
        )));
    }
    if lead && !decide.is_empty() {
        tracing::warn!(
            "going on with changes that alter the result (--resume-with-changes):{}",
            list(&decide)
        );
    }
    if lead && !may.is_empty() {
        tracing::info!(
            "changed since the checkpoint, without effect on the steps' results:{}",
            list(&may)
        );
    }
    if !batch.is_multiple_of(ranks) {
        let fits: Vec<String> =
            (1..=batch).filter(|n| batch.is_multiple_of(*n)).map(|n| n.to_string()).collect();
        return Err(Error::Usage(format!(
            "cannot resume on {ranks} ranks: the checkpoint's global batch of {batch} images must be shared evenly\nhint: use {} ranks",
            fits.join(", ")
        )));
    }
    if batch != wanted {
        tracing::info!(
            "the global batch of {batch} images is kept: {} on each of {ranks} ranks",
            batch / ranks
        );
    }
    Ok(batch)
}
