//! Which checkpoint a run resumes from, and whether it is a checkpoint of the same run.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dw_launch::World;

use crate::config::Config;
use crate::config::identity::{Change, changes};
use crate::data::Dataset;
use crate::data::dataset::same_categories;
use crate::train::checkpoint::{self, Checkpoint};
use crate::{Error, Result};

/// Which checkpoint to resume from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// The newest of the work directory, if there is one.
    Auto,
    /// None: a new run.
    None,
    /// A checkpoint folder or a work directory.
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

/// How long a rank other than 0 waits for its file system to show the checkpoint that rank 0 sees.
/// NFS caches attributes for up to a minute.
const VISIBILITY_TIMEOUT: Duration = Duration::from_secs(90);

/// The checkpoint to resume from, which rank 0 chooses for all ranks.
///
/// # Errors
/// No such checkpoint, a damaged one, a lost peer.
pub fn choose(resume: &Resume, checkpoints: &Path, world: &World) -> Result<Option<Checkpoint>> {
    let mine = match resume {
        _ if world.rank() > 0 => None,
        Resume::None => None,
        Resume::Auto => checkpoint::newest(checkpoints).map_err(with_hint)?,
        Resume::Path(path) => Some(checkpoint::find(path)?),
    };
    let path = mine.as_ref().map(|c| c.path.as_os_str().as_encoded_bytes().to_vec());
    let path = world.broadcast_bytes(path.unwrap_or_default(), "checkpoint")?;
    if world.rank() == 0 || path.is_empty() {
        return Ok(mine);
    }
    // SAFETY: the same program encoded this path on rank 0.
    let path = PathBuf::from(unsafe { std::ffi::OsString::from_encoded_bytes_unchecked(path) });
    let began = Instant::now();
    while !checkpoint::is_complete(&path) && began.elapsed() < VISIBILITY_TIMEOUT {
        std::thread::sleep(Duration::from_millis(200));
    }
    checkpoint::open(&path).map(Some)
}

/// Adds a hint on how to start again to the error that all checkpoints are damaged.
fn with_hint(e: Error) -> Error {
    let Error::Data { path, place, problem } = e else { return e };
    let hint =
        "hint: choose another --work-dir, or remove these folders to start from the first step";
    Error::Data { path, place, problem: format!("{problem}\n{hint}") }
}

/// Compares the run that wrote `c` (with the settings `saved`) with the requested settings, key by
/// key, and returns the global batch (images) to continue with. Settings that determine the result
/// must be equal unless `with_changes`. Changes that are allowed are logged.
///
/// # Errors
/// The keys that differ (exit code 2), other categories (3), or a global batch that the ranks
/// cannot share evenly (2).
pub fn check(
    c: &Checkpoint,
    saved: &Config,
    train: &Dataset,
    requested: &Config,
    world: &World,
    with_changes: bool,
) -> Result<usize> {
    same_categories(&c.state.categories, train.categories(), "the checkpoint", "the data")?;
    let (mut determining, allowed) = changes(saved, requested);
    let data = train.split.fingerprint();
    if c.state.data != data && !determining.iter().any(|d| d.key == "data.train_split") {
        determining.push(Change {
            key: "training data (fingerprint of the packed split)".into(),
            old: format!("{:08x}", c.state.data),
            new: format!("{data:08x}"),
        });
    }
    let batch = global_batch(c, saved, requested, world.size(), &mut determining);
    report_changes(c, &determining, &allowed, with_changes, world.rank() == 0)?;
    check_divisible(batch, world.size())?;
    let wanted = requested.train.images_per_rank * world.size();
    if batch != wanted {
        let (ranks, each) = (world.size(), batch / world.size());
        tracing::info!(
            "keeping the global batch of {batch} images: {each} on each of {ranks} ranks"
        );
    }
    Ok(batch)
}

/// The global batch (images) to continue with. The run's global batch is kept if `images_per_rank`
/// is unchanged, on any number of ranks, or if the requested global batch is equal; anything else
/// is added to `determining`.
fn global_batch(
    c: &Checkpoint,
    saved: &Config,
    requested: &Config,
    num_ranks: usize,
    determining: &mut Vec<Change>,
) -> usize {
    let kept = c.state.global_batch;
    let wanted = requested.train.images_per_rank * num_ranks;
    if wanted == kept || requested.train.images_per_rank == saved.train.images_per_rank {
        return kept;
    }
    determining.push(Change {
        key: "train.images_per_rank x ranks (global batch)".into(),
        old: kept.to_string(),
        new: wanted.to_string(),
    });
    wanted
}

/// Logs the changes since the checkpoint.
///
/// # Errors
/// Changes that determine the result, unless `with_changes`.
fn report_changes(
    c: &Checkpoint,
    determining: &[Change],
    allowed: &[Change],
    with_changes: bool,
    log: bool,
) -> Result<()> {
    let list = |changes: &[Change]| {
        changes.iter().fold(String::new(), |text, change| text + "\n  " + &change.to_string())
    };
    if !determining.is_empty() && !with_changes {
        return Err(Error::Usage(format!(
            "cannot resume from {}: it is a checkpoint of a run with other settings:{}\n\
             hint: start with the settings of that run ({}), start a new run with another \
             --work-dir, or resume anyway with --resume-with-changes",
            c.path.display(),
            list(determining),
            c.path.join("config.toml").display()
        )));
    }
    if log && !determining.is_empty() {
        tracing::warn!(
            "resuming with changes that alter the result (--resume-with-changes):{}",
            list(determining)
        );
    }
    if log && !allowed.is_empty() {
        tracing::info!("changes since the checkpoint that do not affect steps:{}", list(allowed));
    }
    Ok(())
}

/// Checks that the ranks can share a global batch evenly.
fn check_divisible(batch: usize, num_ranks: usize) -> Result<()> {
    if batch.is_multiple_of(num_ranks) {
        return Ok(());
    }
    let divisors = (1..=batch).filter(|n| batch.is_multiple_of(*n)).map(|n| n.to_string());
    Err(Error::Usage(format!(
        "cannot resume on {num_ranks} ranks: the checkpoint's global batch of {batch} images must \
         be shared evenly\nhint: use {} ranks",
        divisors.collect::<Vec<_>>().join(", ")
    )))
}
