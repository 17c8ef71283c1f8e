//! Initial weights: random, pretrained on ImageNet (cached or downloaded), or from any weight file.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use dw_base::text::shown;
use dw_launch::World;
use dw_shards::coco::Category;
use dw_weights::Weights;
use dw_weights::fetch::{Pinned, cache};

use super::checkpoint;
use crate::assign::is_state;
use crate::model::params::{Entry, Role};
use crate::model::weights::{self as by_name, LoadReport, PARTS};
use crate::model::{Detector, ModelConfig, NormKind, Params};
use crate::{Error, Result};

/// Checks that `model.init` is a known name or an existing file, before anything is prepared.
///
/// # Errors
/// It is neither.
pub fn check(init: &str) -> Result<()> {
    const NAMES: [&str; 2] = ["imagenet", "random"];
    if NAMES.contains(&init) || Path::new(init).exists() {
        return Ok(());
    }
    let near = NAMES.iter().find(|name| strsim::damerau_levenshtein(name, init) <= 2);
    let hint = near.map_or_else(String::new, |name| format!("\nhint: did you mean `{name}`?"));
    Err(Error::Usage(format!(
        "`model.init`: expected imagenet, random or a weight file, found {init}, which does not \
         exist{hint}"
    )))
}

/// Loads the initial weights that `model.init` selects, for data with these categories. Collective:
/// called by every rank.
///
/// # Errors
/// A file that is missing or damaged, from which no tensor or not every frozen tensor can be
/// loaded, or that cannot be downloaded.
pub fn weights(
    detector: &mut Detector,
    config: &ModelConfig,
    categories: &[Category],
    world: &World,
) -> Result<()> {
    let path = match config.init.as_str() {
        "random" => {
            if world.rank() == 0 {
                warn_about_random_weights(config);
            }
            return Ok(());
        }
        "imagenet" => imagenet(config, world)?,
        file => PathBuf::from(file),
    };
    // For a work directory this is its newest checkpoint.
    let path = if path.is_dir() { checkpoint::find(&path)?.path } else { path };
    let file = Weights::open(&path)?;
    // A strategy's state, such as a learned centre prior, belongs to the run that learned it.
    let report = by_name::load(&file, &mut detector.params, |name| !is_state(name))?;
    if report.matched == 0 {
        return Err(Error::Usage(format!(
            "{}: no tensor of the file matches the network: {report}",
            path.display()
        )));
    }
    if let (Some(names), 0) = (&file.classes, world.rank()) {
        log_classes(names, categories, &path);
    }
    check_frozen(&detector.params, &report, config, &path)?;
    tracing::info!("{} ({}): {report}", path.display(), file.container);
    let other = report.of_another_network(is_state);
    if world.rank() == 0 && !other.is_empty() {
        tracing::warn!(
            "{}: the file is of another network: {} of its tensors are not in this one, the first \
             is `{}`",
            path.display(),
            other.len(),
            shown(other[0])
        );
    }
    // A file may lack the neck or the head, but the parts that it has should be complete.
    let complete = |(part, loaded, all): &(&str, usize, usize)| {
        loaded == all || (*loaded == 0 && *part != PARTS[0])
    };
    if world.rank() == 0 && !counts(&detector.params, &report).iter().all(complete) {
        tracing::warn!(
            "{}: the file does not match the whole network (loaded tensors: {}); the other tensors \
             start at random values",
            path.display(),
            counts_text(&detector.params, &report)
        );
    }
    Ok(())
}

/// Logs the classes of a weight file, with a warning if its head has the right number of them for
/// `categories`, so that it is loaded, but other ones.
fn log_classes(names: &[String], categories: &[Category], path: &Path) {
    let (path, count) = (path.display(), names.len());
    tracing::info!("{path}: the head was trained on {count} classes: {}", shown(names.join(", ")));
    let other = names.iter().zip(categories).find(|(name, c)| **name != c.name);
    if let (true, Some((old, new))) = (count == categories.len(), other) {
        tracing::warn!(
            "{path}: the file has as many classes as the data, but other names: the head starts \
             with the weights of `{}` for `{}`",
            shown(old),
            shown(&new.name)
        );
    }
}

/// Checks that all ranks have the same weights. Only gradients are reduced, so ranks that start
/// from different weights would train different networks, and an evaluation would mix their
/// detections. Collective: called by every rank.
///
/// # Errors
/// The weights of some ranks differ from those of rank 0; the error names these ranks.
pub fn check_agreement(params: &Params, world: &World) -> Result<()> {
    if world.size() == 1 {
        return Ok(());
    }
    let mine = checksum(params)?.to_le_bytes();
    let all = world.gather_bytes(&mine, "weights")?;
    let other: Vec<usize> = (0..all.len()).filter(|rank| all[*rank] != all[0]).collect();
    if other.is_empty() {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "ranks {other:?} have other weights than rank 0\nhint: the file or folder of the weights \
         must be on storage that all nodes share, and must not change while the job starts"
    )))
}

/// CRC-32C of all tensors of a network.
fn checksum(params: &Params) -> Result<u32> {
    let mut crc = 0;
    for Entry { tensor, .. } in &params.entries {
        let host = dw_torch::to_host(&tensor.detach())?.contiguous();
        let mut bytes = vec![0; host.numel() * host.kind().elt_size_in_bytes()];
        host.f_copy_data_u8(&mut bytes, host.numel()).map_err(dw_torch::error)?;
        crc = crc32c::crc32c_append(crc, &bytes);
    }
    Ok(crc)
}

fn warn_about_random_weights(config: &ModelConfig) {
    tracing::warn!(
        "training from random weights: no stage of the backbone is frozen, and training takes many \
         more epochs than from ImageNet weights"
    );
    if config.norm == NormKind::FrozenBn {
        tracing::warn!(
            "model.norm = \"frozen_bn\" does not normalise with random weights: consider \
             model.norm=gn"
        );
    }
}

/// Checks that the file has every tensor of the backbone that is not trained.
fn check_frozen(
    params: &Params,
    report: &LoadReport,
    config: &ModelConfig,
    path: &Path,
) -> Result<()> {
    let missing = frozen_and_absent(params, report, config.norm);
    let Some(first) = missing.first() else { return Ok(()) };
    Err(Error::Usage(format!(
        "{}: {} frozen tensors are not in the file and would stay at random values, the first is \
         `{first}` (loaded tensors: {})\nhint: use a file of this backbone ({}), or \
         model.frozen_stages=-1{}",
        path.display(),
        missing.len(),
        counts_text(params, report),
        config.backbone.name(),
        if config.norm == NormKind::FrozenBn { " with model.norm=bn or gn" } else { "" }
    )))
}

/// For each part of the network: its name, the number of loaded tensors and the number of all
/// tensors. Excludes counters, which have no effect, the state of strategies, and offsets of
/// deformable convolutions that the file lacks: they start at 0, which makes the convolution equal
/// to the ordinary one in the file.
fn counts(params: &Params, report: &LoadReport) -> Vec<(&'static str, usize, usize)> {
    let absent = absent(report);
    let count = |part: &'static str| {
        let is_offset = |name: &str| name.contains(".conv_offset.") && absent.contains(name);
        let counts = |e: &&Entry| e.role != Role::Counter && !is_state(&e.name);
        let counted = params.entries.iter().filter(counts);
        let counted = counted.filter(|e| !is_offset(&e.name));
        let names: Vec<&str> =
            counted.map(|e| e.name.as_str()).filter(|n| n.starts_with(part)).collect();
        (part, names.iter().filter(|n| !absent.contains(*n)).count(), names.len())
    };
    PARTS.map(count).to_vec()
}

/// The counts as text, for messages.
fn counts_text(params: &Params, report: &LoadReport) -> String {
    let text: Vec<String> = counts(params, report)
        .iter()
        .map(|(part, loaded, all)| format!("{part} {loaded} of {all}"))
        .collect();
    text.join(", ")
}

/// Names of the network's tensors that the file lacks or has with another shape.
fn absent(report: &LoadReport) -> HashSet<&str> {
    // In `reshaped`, the name is followed by both shapes in parentheses.
    let reshaped = report.reshaped.iter().map(|t| t.split(" (").next().unwrap_or(t));
    report.missing.iter().map(String::as_str).chain(reshaped).collect()
}

/// Names of the backbone's tensors that are neither trained nor in the file.
fn frozen_and_absent<'a>(params: &'a Params, report: &LoadReport, norm: NormKind) -> Vec<&'a str> {
    let absent = absent(report);
    let role = |e: &Entry| {
        e.role == Role::Parameter || (norm == NormKind::FrozenBn && e.role != Role::Counter)
    };
    let frozen = |e: &&Entry| !e.trainable && role(e);
    let of_backbone = params.entries.iter().filter(|e| e.name.starts_with(PARTS[0])).filter(frozen);
    of_backbone.map(|e| e.name.as_str()).filter(|n| absent.contains(n)).collect()
}

/// Path of the backbone's pinned ImageNet weights; rank 0 downloads the file if it is not in the
/// cache.
fn imagenet(config: &ModelConfig, world: &World) -> Result<PathBuf> {
    let name = config.backbone.name();
    if (config.width - 1.0).abs() > 0.0 {
        let text =
            format!("model.init = \"imagenet\": expected model.width = 1, found {}", config.width);
        return Err(Error::Usage(format!("{text}\nhint: start with --init random")));
    }
    let pinned = Pinned::find(name)
        .ok_or_else(|| Error::Usage(format!("no ImageNet weights are known for {name}")))?;
    let folder = cache()?;
    let mut failure = Vec::new();
    if world.rank() == 0 && pinned.inside(&folder).is_none() {
        tracing::info!("downloading {}", pinned.url());
        if let Err(e) = pinned.fetch(&folder) {
            failure =
                format!("{e}\nhint: --init random and --init FILE need no download").into_bytes();
        }
    }
    let failure = world.broadcast_bytes(failure, "ImageNet weights")?;
    if !failure.is_empty() {
        return Err(Error::Usage(format!(
            "model.init = \"imagenet\": {}",
            String::from_utf8_lossy(&failure)
        )));
    }
    pinned.inside(&folder).ok_or_else(|| {
        Error::Usage(format!(
            "ImageNet weights: expected {}.pth in {}, where rank 0 has it, found none\n\
             hint: copy the file to every node, or use a home directory that all nodes share",
            pinned.stem,
            folder.display()
        ))
    })
}
