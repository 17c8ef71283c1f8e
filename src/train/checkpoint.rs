//! Checkpoints: folders `step-00001200` that are whole or not there.
//!
//! Written aside, synced, renamed; `DONE` is the last file. A folder without it, or whose checksums do not hold, is
//! never loaded (pain 14).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use fs_err as fs;
use safetensors::{Dtype, tensor::TensorView};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::flat::{Flat, named};
use crate::config::{self, Config};
use crate::{Error, Result};
use crate::model::params::Entry;
use crate::model::{Params, weights};
use crate::torch;
use dw_shards::coco::Category;
use dw_weights::Weights;

const MODEL: &str = "model.safetensors";
const MOMENTUM: &str = "momentum.safetensors";
const STATE: &str = "state.json";
const CONFIG: &str = "config.toml";
const MANIFEST: &str = "manifest.json";
const DONE: &str = "DONE";

/// What a run needs to go on, beside tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Steps done.
    pub step: usize,
    /// Seed of order and augmentation.
    pub seed: u64,
    /// Images of all ranks in one step.
    pub global_batch: usize,
    /// Fingerprint of the training split's index.
    pub data: u32,
    /// Label -> category.
    pub categories: Vec<Category>,
}

/// A whole checkpoint on disk.
#[derive(Debug)]
pub struct Checkpoint {
    /// The folder.
    pub path: PathBuf,
    /// State.
    pub state: State,
    /// Configuration of the run.
    pub config: Config,
}

/// Folder name of a step.
fn folder(step: usize) -> String {
    format!("step-{step:08}")
}

fn bytes_of(t: &Tensor) -> Result<(Dtype, Vec<usize>, Vec<u8>)> {
    let (dtype, width) = match t.kind() {
        Kind::Float => (Dtype::F32, 4),
        Kind::Double => (Dtype::F64, 8),
        Kind::Int64 => (Dtype::I64, 8),
        other => return Err(Error::Data(format!("cannot store tensors of kind {other:?}"))),
    };
    let t = t.contiguous();
    let mut bytes = vec![0; t.numel() * width];
    t.f_copy_data_u8(&mut bytes, t.numel())?;
    Ok((dtype, t.size().iter().map(|&n| n as usize).collect(), bytes))
}

fn write_tensors(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let data = tensors
        .iter()
        .map(|(n, t)| Ok((n.to_owned(), bytes_of(t)?)))
        .collect::<Result<Vec<_>>>()?;
    let problem = |e: safetensors::SafeTensorError| {
        Error::Data(format!("cannot write {}: {e}", path.display()))
    };
    let views = data
        .iter()
        .map(|(n, (dtype, shape, bytes))| {
            Ok((n.clone(), TensorView::new(*dtype, shape.clone(), bytes)?))
        })
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(problem)?;
    safetensors::serialize_to_file(views, None, path).map_err(problem)
}

/// All that a checkpoint holds, copied: training goes on while it is written.
pub struct Snapshot {
    state: State,
    config: Config,
    model: Vec<(String, Tensor)>,
    momentum: Vec<(String, Tensor)>,
}

impl Snapshot {
    /// Copies everything to the host in four pieces: weights, momentum, what is not trained, and counters. A GPU
    /// is waited for four times and not once for each of hundreds of tensors, and the thread that writes the
    /// checkpoint never touches it.
    ///
    /// # Errors
    /// Memory ran out, or the device failed.
    pub fn take(state: State, config: &Config, params: &Params, flat: &Flat) -> Result<Self> {
        let (weights, momentum) =
            (torch::to_host(&flat.params.detach())?, torch::to_host(&flat.momentum)?);
        let mut tensors: HashMap<String, Tensor> = named(&weights, &flat.slots).collect();
        for kind in [params.kind, Kind::Int64] {
            let rest = |e: &&Entry| !tensors.contains_key(&e.name) && e.tensor.kind() == kind;
            let rest: Vec<&Entry> = params.entries.iter().filter(rest).collect();
            let copies = together(&rest)?;
            tensors.extend(rest.iter().map(|e| e.name.clone()).zip(copies));
        }
        let model = params.entries.iter().filter_map(|e| tensors.remove_entry(&e.name)).collect();
        Ok(Self {
            state,
            config: config.clone(),
            model,
            momentum: named(&momentum, &flat.slots).collect(),
        })
    }

    /// A tensor of the network by its name.
    #[cfg(test)]
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.model.iter().find(|(n, _)| n == name).map(|(_, t)| t)
    }

    /// Steps done.
    pub fn step(&self) -> usize {
        self.state.step
    }
}

/// Copies of tensors of one kind in host memory, in their own shapes, through one buffer.
fn together(entries: &[&Entry]) -> Result<Vec<Tensor>> {
    if entries.is_empty() {
        return Ok(vec![]);
    }
    let flat: Vec<Tensor> = entries.iter().map(|e| e.tensor.detach().reshape([-1])).collect();
    let host = torch::to_host(&Tensor::f_cat(&flat, 0)?)?;
    let (mut copies, mut at) = (vec![], 0);
    for e in entries {
        let numel = e.tensor.numel() as i64;
        copies.push(host.narrow(0, at, numel).view(&e.tensor.size()[..]));
        at += numel;
    }
    Ok(copies)
}

/// Writes a checkpoint below `dir`.
///
/// # Errors
/// A full disk or a folder that cannot be written; nothing half-written is left.
pub fn save(dir: &Path, snapshot: &Snapshot) -> Result<PathBuf> {
    fs::create_dir_all(dir).map_err(Error::io("cannot create", dir))?;
    let step = snapshot.state.step;
    let aside = dir.join(format!(".{}.writing", folder(step)));
    let target = dir.join(folder(step));
    let written = write_all(&aside, snapshot).and_then(|()| {
        if target.exists() {
            fs::remove_dir_all(&target).map_err(Error::io("cannot replace", &target))?;
        }
        fs::rename(&aside, &target).map_err(Error::io("cannot rename into", &target))?;
        Ok(dw_shards::writer::sync_dir(dir)?)
    });
    if let Err(e) = written {
        // The first error is the one to tell.
        let _ = fs::remove_dir_all(&aside);
        return Err(Error::Data(format!(
            "checkpoint of step {step}: {e}\nhint: free space below {} or allow writing there, then run again: older checkpoints are whole; checkpoint.on_error = \"continue\" trains on without it",
            dir.display()
        )));
    }
    Ok(target)
}

fn write_all(aside: &Path, snapshot: &Snapshot) -> Result<()> {
    let Snapshot { state, config, model, momentum } = snapshot;
    if aside.exists() {
        fs::remove_dir_all(aside).map_err(Error::io("cannot remove", aside))?;
    }
    fs::create_dir(aside).map_err(Error::io("cannot create", aside))?;
    let write = |name: &str, text: String| {
        let path = aside.join(name);
        fs::write(&path, text).map_err(Error::io("cannot write", &path))
    };
    let json = |e: serde_json::Error| Error::Data(format!("cannot write {}: {e}", aside.display()));
    write(STATE, serde_json::to_string_pretty(state).map_err(json)? + "\n")?;
    write(
        CONFIG,
        toml::to_string(config)
            .map_err(|e| Error::Data(format!("cannot write {}: {e}", aside.display())))?,
    )?;
    let mode =
        fs::metadata(aside.join(STATE)).map_err(Error::io("cannot read", aside))?.permissions();
    for (name, tensors) in [(MODEL, model), (MOMENTUM, momentum)] {
        let path = aside.join(name);
        write_tensors(&path, tensors)?;
        // The library makes the file private to its owner.
        fs::set_permissions(&path, mode.clone()).map_err(Error::io("cannot write", &path))?;
    }
    let mut manifest = BTreeMap::new();
    for name in [MODEL, MOMENTUM, STATE, CONFIG] {
        let path = aside.join(name);
        manifest.insert(name, checksum(&path)?);
        sync(&path)?;
    }
    write(MANIFEST, serde_json::to_string_pretty(&manifest).map_err(json)? + "\n")?;
    sync(&aside.join(MANIFEST))?;
    write(DONE, format!("step {}\n", state.step))?;
    sync(&aside.join(DONE))?;
    Ok(dw_shards::writer::sync_dir(aside)?)
}

fn sync(path: &Path) -> Result<()> {
    std::fs::File::open(path).and_then(|f| f.sync_all()).map_err(Error::io("cannot sync", path))
}

fn checksum(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(Error::io("cannot read", path))?;
    Ok(format!("crc32c {:08x} {}", crc32c::crc32c(&bytes), bytes.len()))
}

/// Opens a checkpoint folder and checks every file.
///
/// # Errors
/// Not a checkpoint, an unfinished or a damaged one.
pub fn open(path: &Path) -> Result<Checkpoint> {
    if !path.is_dir() {
        return Err(Error::Usage(format!(
            "no checkpoint at {}: expected a folder like work/NAME/checkpoints/step-00001200",
            path.display()
        )));
    }
    if !is_whole(path) {
        return Err(Error::Data(format!(
            "{}: not a whole checkpoint: it has no file {DONE}",
            path.display()
        )));
    }
    let text = |name: &str| {
        fs::read_to_string(path.join(name)).map_err(|e| Error::Data(format!("checkpoint: {e}")))
    };
    let bad = |name: &str, e: &dyn std::fmt::Display| {
        Error::Data(format!("{}: {e}", path.join(name).display()))
    };
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
    let config = config::from_saved(&text(CONFIG)?, &path.join(CONFIG))?;
    Ok(Checkpoint { path: path.to_owned(), state, config })
}

/// Step folders below `dir`, newest first.
fn steps(dir: &Path) -> Vec<(usize, PathBuf)> {
    let Ok(entries) = fs::read_dir(dir) else { return vec![] };
    let mut found: Vec<_> = entries
        .flatten()
        .filter_map(|e| {
            Some((e.file_name().to_str()?.strip_prefix("step-")?.parse().ok()?, e.path()))
        })
        .collect();
    found.sort_by_key(|f| std::cmp::Reverse(f.0));
    found
}

/// The newest whole checkpoint below `dir`; damaged ones are passed over with a warning.
pub fn newest(dir: &Path) -> Option<Checkpoint> {
    for (_, path) in steps(dir) {
        match open(&path) {
            Ok(c) => return Some(c),
            Err(e) => tracing::warn!("passing over a checkpoint: {e}"),
        }
    }
    None
}

/// The newest step that has a whole checkpoint below `dir`, by its name alone.
pub fn newest_step(dir: &Path) -> Option<usize> {
    steps(dir).into_iter().find(|(_, path)| is_whole(path)).map(|(step, _)| step)
}

/// Is there a whole checkpoint of a step below `dir`?
pub fn exists(dir: &Path, step: usize) -> bool {
    is_whole(&dir.join(folder(step)))
}

/// Is the folder's last file there?
pub fn is_whole(path: &Path) -> bool {
    path.join(DONE).is_file()
}

/// Removes what a killed process left half-written or half-removed.
///
/// # Errors
/// A folder that cannot be removed.
pub fn clean(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(".step-") && (name.ends_with(".writing") || name.ends_with(".removing"))
        {
            fs::remove_dir_all(entry.path()).map_err(Error::io("cannot remove", &entry.path()))?;
        }
    }
    Ok(())
}

/// Removes all but the newest `keep` checkpoints up to `last` (the one just written) and the best.
///
/// # Errors
/// A folder that cannot be removed.
pub fn prune(dir: &Path, last: usize, keep: usize, best: Option<usize>) -> Result<()> {
    let whole = steps(dir).into_iter().filter(|(step, path)| *step <= last && is_whole(path));
    for (step, path) in whole.skip(keep) {
        if Some(step) != best {
            // A kill in between leaves no folder that looks like a checkpoint and is none.
            let aside = dir.join(format!(".{}.removing", folder(step)));
            fs::rename(&path, &aside)
                .and_then(|()| fs::remove_dir_all(&aside))
                .map_err(Error::io("cannot remove", &path))?;
        }
    }
    Ok(())
}

impl Checkpoint {
    /// Copies weights, and momentum where `flat` is given, into a network of the same architecture.
    ///
    /// # Errors
    /// Another architecture: which tensors differ.
    pub fn load(&self, params: &mut Params, flat: Option<&Flat>) -> Result<()> {
        let path = self.path.join(MODEL);
        let report = weights::load(&Weights::open(&path)?, params)?;
        if !report.complete() || !report.unused.is_empty() {
            return Err(Error::Usage(format!(
                "{}: the checkpoint is of another architecture than the configuration asks for\n{report}\nhint: use the configuration of that run (`config.toml` in the checkpoint), or --init to take what fits",
                path.display()
            )));
        }
        if let Some(flat) = flat {
            let momentum = weights::read(&self.path.join(MOMENTUM))?;
            for (name, mut place) in flat.momentum_by_name() {
                let Some(t) = momentum.get(&name).filter(|t| t.size() == place.size()) else {
                    return Err(Error::Data(format!(
                        "{}: no momentum of `{name}` in the right shape",
                        self.path.display()
                    )));
                };
                tch::no_grad(|| place.copy_(t));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::model::params::{Init, Role};

    /// Hundreds of tensors are copied as four buffers, and training on changes none of them.
    #[test]
    fn a_snapshot_is_four_copies() {
        let mut params = Params::new(Kind::Float, Device::Cpu);
        for i in 0..9 {
            let _ = params.param(
                format!("w{i}"),
                &[4, 3, 3, 3],
                Init::Normal(1.0),
                i % 3 > 0,
                i % 2 == 0,
            );
            let _ = params.buffer(format!("b{i}"), &[5], f64::from(i), Role::Constant);
            let _ = params.counter(format!("n{i}"));
        }
        let flat = Flat::new(&mut params).unwrap();
        let values = |t: &Tensor| {
            Vec::<f64>::try_from(t.to_kind(Kind::Double).contiguous().reshape([-1])).unwrap()
        };
        let before: Vec<Vec<f64>> = params.entries.iter().map(|e| values(&e.tensor)).collect();
        let state = State { step: 1, seed: 0, global_batch: 1, data: 0, categories: vec![] };
        let snapshot = Snapshot::take(state, &Config::default(), &params, &flat).unwrap();
        tch::no_grad(|| {
            params.entries.iter().for_each(|e| drop(e.tensor.shallow_clone().fill_(7)))
        });
        let names: Vec<&String> = snapshot.model.iter().map(|(name, _)| name).collect();
        assert!(
            names.iter().copied().eq(params.entries.iter().map(|e| &e.name)),
            "every tensor, in the network's order"
        );
        for ((name, t), before) in snapshot.model.iter().zip(&before) {
            assert_eq!(&values(t), before, "{name}");
        }
        // What is not trained lies in one buffer, without gaps; counters in another.
        for kind in [Kind::Float, Kind::Int64] {
            let mut end = None;
            for (e, (name, t)) in params.entries.iter().zip(&snapshot.model) {
                if e.trainable || t.kind() != kind {
                    continue;
                }
                let start = t.data_ptr() as usize;
                assert!(end.is_none_or(|end| end == start), "{name} is a copy of its own");
                end = Some(start + t.numel() * kind.elt_size_in_bytes());
            }
        }
    }
}
