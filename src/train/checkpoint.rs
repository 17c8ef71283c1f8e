//! Checkpoints: folders such as `step-00001200` that are complete or absent.
//!
//! A checkpoint is written to a temporary folder, synced and renamed. `DONE` is written last. A
//! folder without it, or with a wrong checksum, is never loaded, so an interrupted write cannot be
//! mistaken for a checkpoint.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use dw_base::file::write_folder_atomically;
use dw_weights::Weights;
use safetensors::{Dtype, View};
use std::fs;
use tch::{Kind, Tensor};

use super::flat::Flat;
use super::snapshot::{Snapshot, State};
use crate::model::{Params, weights};
use crate::{Error, Result};

const MODEL: &str = "model.safetensors";
const MOMENTUM: &str = "momentum.safetensors";
const STATE: &str = "state.json";
const CONFIG: &str = "config.toml";
const MANIFEST: &str = "manifest.json";
const DONE: &str = "DONE";

/// A complete checkpoint on disk.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// The contents of `state.json`.
    pub state: State,
    /// The resolved configuration of the run, TOML.
    pub config: String,
}

/// Name of the checkpoint folder of a step.
fn folder_name(step: usize) -> String {
    format!("step-{step:08}")
}

/// Adapter through which the safetensors crate writes a tensor in host memory. The bytes are copied
/// only when they are written, one tensor at a time, because the memory layout of most weights
/// differs from the order in the file.
struct InFile<'a> {
    tensor: &'a Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl<'a> InFile<'a> {
    fn new(tensor: &'a Tensor) -> Result<Self> {
        let dtype = match tensor.kind() {
            Kind::Float => Dtype::F32,
            Kind::Double => Dtype::F64,
            Kind::Int64 => Dtype::I64,
            other => return Err(Error::Bug(format!("cannot save a tensor of kind {other:?}"))),
        };
        let shape = tensor.size().iter().map(|&n| n as usize).collect();
        Ok(Self { tensor, dtype, shape })
    }
}

impl View for InFile<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; self.data_len()];
        self.tensor.contiguous().copy_data_u8(&mut bytes, self.tensor.numel());
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}

/// Writes named tensors and metadata to a safetensors file.
fn write_tensors(
    path: &Path,
    tensors: &[(String, Tensor)],
    metadata: Option<HashMap<String, String>>,
) -> Result<()> {
    let views = tensors.iter().map(|(name, t)| Ok((name, InFile::new(t)?)));
    let views = views.collect::<Result<Vec<_>>>()?;
    safetensors::serialize_to_file(views, metadata, path).map_err(|e| Error::data(path, "", e))
}

/// Writes a checkpoint into `dir`, the folder of all checkpoints; returns its path.
///
/// # Errors
/// A full disk or a folder that cannot be written; no incomplete checkpoint is left behind.
pub fn save(dir: &Path, snapshot: &Snapshot) -> Result<PathBuf> {
    let step = snapshot.state.step;
    let path = dir.join(folder_name(step));
    let problem = |e: Error| {
        Error::Inconsistent(format!(
            "checkpoint of step {step}: {e}\nhint: free space in {}, or make it writable, and run \
             again: older checkpoints are intact; checkpoint.on_error = \"continue\" trains on \
             without the checkpoint",
            dir.display()
        ))
    };
    write_folder_atomically(&path, |folder| write_files(folder, snapshot)).map_err(problem)?;
    Ok(path)
}

/// Writes and syncs all files of a checkpoint, `DONE` last.
fn write_files(folder: &Path, snapshot: &Snapshot) -> Result<()> {
    let Snapshot { state, config, model, momentum } = snapshot;
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        fs::write(&path, text).map_err(Error::io("cannot write", &path))
    };
    let json = |e: serde_json::Error| Error::Bug(format!("cannot serialize the state: {e}"));
    write(STATE, serde_json::to_string_pretty(state).map_err(json)? + "\n")?;
    write(CONFIG, config.clone())?;
    let mode =
        fs::metadata(folder.join(STATE)).map_err(Error::io("cannot read", folder))?.permissions();
    let classes: Vec<String> = state.categories.iter().map(|c| c.name.clone()).collect();
    let classes = Some(dw_weights::classes::metadata(&classes));
    for (name, tensors, metadata) in [(MODEL, model, classes), (MOMENTUM, momentum, None)] {
        let path = folder.join(name);
        write_tensors(&path, tensors, metadata)?;
        // The safetensors crate creates the file with access for its owner only.
        fs::set_permissions(&path, mode.clone()).map_err(Error::io("cannot write", &path))?;
    }
    let mut manifest = BTreeMap::new();
    for name in [MODEL, MOMENTUM, STATE, CONFIG] {
        let path = folder.join(name);
        manifest.insert(name, checksum(&path)?);
        sync(&path)?;
    }
    write(MANIFEST, serde_json::to_string_pretty(&manifest).map_err(json)? + "\n")?;
    sync(&folder.join(MANIFEST))?;
    write(DONE, format!("step {}\n", state.step))?;
    sync(&folder.join(DONE))
}

/// Forces a file's contents to disk.
fn sync(path: &Path) -> Result<()> {
    std::fs::File::open(path).and_then(|f| f.sync_all()).map_err(Error::io("cannot sync", path))
}

/// The checksum line of a file in the manifest: CRC-32C and length in bytes.
fn checksum(path: &Path) -> Result<String> {
    let unreadable = Error::io("cannot read", path);
    let read = || {
        let mut file = fs::File::open(path)?;
        let (mut crc, mut length, mut part) = (0, 0, vec![]);
        while file.by_ref().take(1 << 20).read_to_end(&mut part)? > 0 {
            (crc, length) = (crc32c::crc32c_append(crc, &part), length + part.len());
            part.clear();
        }
        Ok(format!("crc32c {crc:08x} {length}"))
    };
    read().map_err(unreadable)
}

/// Opens a checkpoint folder and verifies the checksum of every file.
///
/// # Errors
/// No checkpoint, an incomplete one or a damaged one.
pub fn open(path: &Path) -> Result<Checkpoint> {
    if !path.is_dir() {
        return Err(Error::Usage(format!(
            "no checkpoint at {}: expected a folder such as work/NAME/checkpoints/step-00001200",
            path.display()
        )));
    }
    if !is_complete(path) {
        let problem = format!("incomplete checkpoint: expected a file {DONE}, found none");
        return Err(Error::data(path, "", problem));
    }
    let text = |name: &str| {
        let path = path.join(name);
        fs::read_to_string(&path).map_err(Error::io("cannot read", &path))
    };
    let bad = |name: &str, e: &dyn std::fmt::Display| Error::data(&path.join(name), "", e);
    let manifest: BTreeMap<String, String> =
        serde_json::from_str(&text(MANIFEST)?).map_err(|e| bad(MANIFEST, &e))?;
    for name in [MODEL, MOMENTUM, STATE, CONFIG] {
        let expected =
            manifest.get(name).ok_or_else(|| bad(MANIFEST, &format!("does not list {name}")))?;
        let found = checksum(&path.join(name))?;
        if *expected != found {
            return Err(bad(
                name,
                &format!("the file is damaged: expected {expected}, found {found}"),
            ));
        }
    }
    let state: State = serde_json::from_str(&text(STATE)?).map_err(|e| bad(STATE, &e))?;
    Ok(Checkpoint { path: path.to_owned(), state, config: text(CONFIG)? })
}

/// The checkpoint in the folder `path`, or the newest one if `path` is a work directory.
///
/// # Errors
/// As [`open`], or a work directory without a complete checkpoint.
pub fn find(path: &Path) -> Result<Checkpoint> {
    let checkpoints = path.join("checkpoints");
    let folder = if checkpoints.is_dir() { &checkpoints } else { path };
    let is_one = [DONE, STATE, MODEL].iter().any(|name| path.join(name).exists())
        || path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("step-"));
    if !path.is_dir() || (is_one && folder == path) {
        return open(path);
    }
    newest(folder)?.ok_or_else(|| {
        Error::Usage(format!(
            "no complete checkpoint in {}\nhint: expected the work directory of a run, or a folder \
             such as work/NAME/checkpoints/step-00001200",
            folder.display()
        ))
    })
}

/// Steps and paths of the checkpoint folders in `dir`, newest first; none if there is no `dir`.
fn steps(dir: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let problem = Error::io("cannot list", dir);
    let entries = match fs::read_dir(dir) {
        // A link to a disk that is not mounted is not an empty folder.
        Err(e) if e.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(dir).is_err() => {
            return Ok(vec![]);
        }
        entries => entries.and_then(Iterator::collect::<io::Result<Vec<_>>>),
    };
    let step = |e: fs::DirEntry| {
        Some((e.file_name().to_str()?.strip_prefix("step-")?.parse().ok()?, e.path()))
    };
    let mut found: Vec<_> = entries.map_err(problem)?.into_iter().filter_map(step).collect();
    found.sort_by_key(|f| std::cmp::Reverse(f.0));
    Ok(found)
}

/// The newest complete checkpoint in `dir`; incomplete and damaged ones are skipped with a warning.
///
/// # Errors
/// A folder or file cannot be read, or every complete checkpoint is damaged: a run must not start
/// again from its first step and replace them.
pub fn newest(dir: &Path) -> Result<Option<Checkpoint>> {
    let mut damaged: Vec<String> = vec![];
    for (_, path) in steps(dir)? {
        match open(&path) {
            Ok(c) => return Ok(Some(c)),
            Err(e @ Error::Io { .. }) if is_complete(&path) && !is_damage(&e) => return Err(e),
            Err(e) => {
                tracing::warn!("skipping a checkpoint: {e}");
                if is_complete(&path) {
                    damaged.extend(path.file_name().map(|n| n.to_string_lossy().into_owned()));
                }
            }
        }
    }
    if damaged.is_empty() {
        return Ok(None);
    }
    let problem = format!("every complete checkpoint is damaged: {}", damaged.join(", "));
    Err(Error::data(dir, "", problem))
}

/// Whether a read error means that the checkpoint is damaged: a file is missing or is not text.
fn is_damage(e: &Error) -> bool {
    use io::ErrorKind::{InvalidData, NotFound};
    matches!(e, Error::Io { source, .. } if matches!(source.kind(), NotFound | InvalidData))
}

/// The newest step with a complete checkpoint in `dir`, if any; checksums are not verified.
///
/// # Errors
/// The folder cannot be read.
pub fn newest_step(dir: &Path) -> Result<Option<usize>> {
    let all = steps(dir)?;
    Ok(all.into_iter().find(|(_, path)| is_complete(path)).map(|(step, _)| step))
}

/// Whether `dir` has a complete checkpoint of a step; checksums are not verified.
pub fn exists(dir: &Path, step: usize) -> bool {
    is_complete(&dir.join(folder_name(step)))
}

/// Whether a folder has the file `DONE`, which is written last.
pub fn is_complete(path: &Path) -> bool {
    path.join(DONE).is_file()
}

/// Removes temporary folders that a killed process left behind. A folder that cannot be removed
/// (another process reads it over NFS, for example) stays, with a warning.
pub fn clean(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(".step-") && (name.ends_with(".writing") || name.ends_with(".removing"))
        {
            warn_if_not_removed(&entry.path(), fs::remove_dir_all(entry.path()));
        }
    }
}

fn warn_if_not_removed(path: &Path, result: std::io::Result<()>) {
    if let Err(e) = result {
        tracing::warn!("cannot remove {}, which is no longer needed: {e}", path.display());
    }
}

/// Removes all checkpoints except the newest `keep` and the best one: the first step in `best` that
/// has a checkpoint, because the write of a better one may have failed (a full disk). Checkpoints
/// of steps after `last`, the one just written, are ignored. A checkpoint that cannot be removed
/// stays, with a warning.
pub fn prune(dir: &Path, last: usize, keep: usize, best: &[usize]) {
    let all = match steps(dir) {
        Ok(all) => all,
        Err(e) => {
            tracing::warn!("old checkpoints stay: {e}");
            return;
        }
    };
    let complete = all.into_iter().filter(|(step, path)| *step <= last && is_complete(path));
    let best = best.iter().copied().find(|step| exists(dir, *step));
    for (step, path) in complete.skip(keep) {
        if Some(step) != best {
            // Renamed first, so that an interrupted removal does not leave an incomplete
            // checkpoint.
            let aside = dir.join(format!(".{}.removing", folder_name(step)));
            let removed = fs::rename(&path, &aside).and_then(|()| fs::remove_dir_all(&aside));
            warn_if_not_removed(&path, removed);
        }
    }
}

impl Checkpoint {
    /// Copies the weights into a network of the same architecture, and the momentum into `flat` if
    /// given.
    ///
    /// # Errors
    /// Another architecture; the message lists the tensors that differ.
    pub fn load(&self, params: &mut Params, flat: Option<&Flat>) -> Result<()> {
        let path = self.path.join(MODEL);
        let report = weights::load(&Weights::open(&path)?, params, |_| true)?;
        if !report.complete() || !report.unused.is_empty() {
            return Err(Error::Usage(format!(
                "{}: the checkpoint has a different architecture than the configuration\n\
                 {report}\nhint: use the configuration of that run (`config.toml` in the \
                 checkpoint), or --init to load the tensors that match",
                path.display()
            )));
        }
        if let Some(flat) = flat {
            let momentum = weights::read(&self.path.join(MOMENTUM))?;
            let mut without = vec![];
            for (name, mut view) in flat.momentum_by_name() {
                match momentum.get(&name) {
                    Some(t) if t.size() == view.size() => tch::no_grad(|| view.copy_(t)),
                    Some(t) => {
                        let (expected, found) = (view.size(), t.size());
                        let problem = format!("expected shape {expected:?}, found {found:?}");
                        return Err(Error::data(&self.path.join(MOMENTUM), name, problem));
                    }
                    // The parameter was frozen before, by another value of `model.frozen_stages`.
                    None => without.push(name),
                }
            }
            if let Some(first) = without.first() {
                tracing::info!(
                    "{} parameters, which were not trained before, start without momentum; the \
                     first is `{first}`",
                    without.len()
                );
            }
        }
        Ok(())
    }
}
