//! Which checkpoint a run resumes from, and whether it is a checkpoint of the same run.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dw_base::text::shown;
use dw_launch::World;

use crate::config::identity::{Change, changes};
use crate::config::{self, Config};
use crate::data::Dataset;
use crate::data::dataset::same_categories;
use crate::train::Plan;
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
        Resume::Auto => checkpoint::newest(checkpoints).map_err(all_damaged)?,
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
fn all_damaged(e: Error) -> Error {
    let Error::Data { path, place, problem } = e else { return e };
    let hint =
        "hint: choose another --work-dir, or remove these folders to start from the first step";
    Error::Data { path, place, problem: format!("{problem}\n{hint}") }
}

/// Adds a hint on how to continue to the message of a run that was stopped by a signal.
pub fn with_hint(e: Error, resume: &Resume) -> Error {
    let Error::Preempted(text) = e else { return e };
    let hint = match resume {
        Resume::Auto => "run again to resume",
        _ => "run again with --resume auto to resume",
    };
    Error::Preempted(format!("{text}\nhint: {hint}"))
}

/// Whether a checkpoint belongs to a work directory.
pub fn is_inside(checkpoint: &Path, work_dir: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    // `checkpoints` may be a link to another disk.
    let own = real(&work_dir.join("checkpoints"));
    // So may a single checkpoint be; a relative path may have no parent.
    checkpoint.parent().is_some_and(|p| real(p) == own) || real(checkpoint).parent() == Some(&own)
}

/// The command that continues the run of a checkpoint with its settings.
pub fn continuation(c: &Checkpoint, requested: &Resume, work_dir: &Path) -> String {
    let config = c.path.join("config.toml");
    let command = format!("dw-train {} --work-dir {}", config.display(), work_dir.display());
    match requested {
        Resume::Auto => command,
        _ => format!("{command} --resume {}", c.path.display()),
    }
}

/// Checks that a run from `from`, or from step 0, would not overwrite checkpoints of another run or
/// of later steps. `newest`: the last step in the work directory.
///
/// # Errors
/// It would.
pub fn check_unused(
    checkpoints: &Path,
    newest: Option<usize>,
    from: Option<&Checkpoint>,
    work_dir: &Path,
) -> Result<()> {
    let Some(newest) = newest else { return Ok(()) };
    let continues = from.filter(|c| is_inside(&c.path, work_dir));
    if continues.is_some_and(|c| newest <= c.state.step) {
        return Ok(());
    }
    let start = from.map_or(0, |c| c.state.step);
    let problem = if newest > start {
        format!("of step {newest}, which a run from step {start} would overwrite")
    } else {
        format!("of another run (step {newest}), from which a restart would resume")
    };
    Err(Error::Usage(format!(
        "{}: contains a checkpoint {problem}\n\
         hint: --resume auto continues from it; otherwise choose another --work-dir, or remove it",
        checkpoints.display()
    )))
}

/// Compares the run that wrote `c` (with the settings `saved`) with the requested settings, key by
/// key, and returns the global batch (images) to continue with. Settings that determine the result
/// must be equal unless `with_changes`; `command` continues the run without changes. Changes that
/// are allowed are logged.
///
/// # Errors
/// The keys that differ, other categories, or a global batch that the ranks cannot share evenly.
pub fn check(
    c: &Checkpoint,
    saved: &Config,
    train: &Dataset,
    requested: &Config,
    world: &World,
    with_changes: bool,
    command: &str,
) -> Result<usize> {
    same_categories(&c.state.categories, train.categories(), "the checkpoint", "the data")
        .map_err(|e| {
            Error::Usage(format!(
                "cannot resume from {}: {e}\nhint: choose another --work-dir for other data",
                c.path.display()
            ))
        })?;
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
    if !determining.is_empty() && !with_changes {
        return Err(Error::Usage(format!(
            "cannot resume from {}: it is a checkpoint of a run with other settings:{}\n\
             hint: continue that run with `{command}`, start a new run with another --work-dir, or \
             resume anyway with --resume-with-changes",
            c.path.display(),
            list(&determining)
        )));
    }
    if world.rank() == 0 {
        log_changes(&determining, &allowed);
        let evaluates = saved.eval.every_epochs > 0 && requested.eval.every_epochs > 0;
        if evaluates && allowed.iter().any(|change| affects_ap(&change.key)) {
            tracing::warn!(
                "the AP of earlier evaluations may differ for this reason alone; the best \
                 checkpoint is still the one with the largest AP of all"
            );
        }
    }
    check_divisible(batch, world.size())?;
    if batch != requested.train.global_batch(world.size()) {
        let (ranks, each) = (world.size(), batch / world.size());
        tracing::info!(
            "keeping the global batch of {batch} images: {each} on each of {ranks} ranks"
        );
    }
    Ok(batch)
}

/// Warns if the validation split is not the one that the run was evaluated on before.
pub fn warn_of_other_validation(c: &Checkpoint, val: &Dataset) {
    if c.state.validation.is_some_and(|before| before != val.split.fingerprint()) {
        tracing::warn!(
            "the validation split `{}` was packed again since the checkpoint with other images, \
             boxes or order; AP is compared with that of earlier evaluations nevertheless",
            shown(&val.split.meta.split)
        );
    }
}

/// The global batch (images) to continue with. The run's global batch is kept if the requested
/// images of a rank are unchanged, on any number of ranks, or if the requested global batch is
/// equal; anything else is added to `determining`.
fn global_batch(
    c: &Checkpoint,
    saved: &Config,
    requested: &Config,
    num_ranks: usize,
    determining: &mut Vec<Change>,
) -> usize {
    let kept = c.state.global_batch;
    let wanted = requested.train.global_batch(num_ranks);
    if wanted == kept || requested.train.global_batch(1) == saved.train.global_batch(1) {
        return kept;
    }
    determining.push(Change {
        key: "train.images_per_rank x train.accumulate x ranks (global batch)".into(),
        old: kept.to_string(),
        new: wanted.to_string(),
    });
    wanted
}

/// The changes, one per line.
fn list(changes: &[Change]) -> String {
    changes.iter().fold(String::new(), |text, change| text + "\n  " + &change.to_string())
}

/// Logs the changes since the checkpoint.
fn log_changes(determining: &[Change], allowed: &[Change]) {
    if !determining.is_empty() {
        tracing::warn!(
            "resuming with changes that alter the result (--resume-with-changes):{}",
            list(determining)
        );
    }
    if !allowed.is_empty() {
        tracing::info!("changes since the checkpoint that do not affect steps:{}", list(allowed));
    }
}

/// Whether the AP of the same weights depends on this key.
fn affects_ap(key: &str) -> bool {
    let schedules = ["eval.every_epochs", "eval.bag_images"];
    key == "data.val_split" || key.starts_with("eval.") && !schedules.contains(&key)
}

/// If a run continues with another global batch or other data, says where its steps are in the
/// epochs of the new plan. `data`: fingerprint of the training split.
///
/// # Errors
/// No step is left, although the run of the checkpoint may not have been at its end.
pub fn check_progress(c: &Checkpoint, plan: &Plan, requested: &Config, data: u32) -> Result<()> {
    let saved = config::from_toml(&c.config, &c.path)?.data;
    let same_images = c.state.data == data
        && saved.limit == requested.data.limit
        && saved.filter_empty == requested.data.filter_empty;
    if same_images && c.state.global_batch == plan.global_batch() {
        return Ok(());
    }
    let (start, total, each) = (c.state.step, plan.total_steps, plan.steps_per_epoch);
    if start >= total {
        return Err(Error::Usage(format!(
            "nothing is left to train: the checkpoint has done {start} steps, and with this global \
             batch and data the run has {total}, in epochs of {each}\n\
             hint: raise train.epochs, or set train.max_steps"
        )));
    }
    if plan.rank == 0 {
        tracing::warn!(
            "the {start} steps of the checkpoint count as {:.2} epochs of {each} steps, after \
             which {} steps are left",
            start as f64 / each as f64,
            total - start
        );
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
