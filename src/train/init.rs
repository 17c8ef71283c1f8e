//! Starting weights: random, ImageNet's from the cache or the network, or any weight file.

use std::collections::HashSet;
use std::path::PathBuf;

use dw_base::text::shown;
use dw_launch::World;
use dw_weights::Weights;
use dw_weights::fetch::{Pinned, cache};

use crate::app;
use crate::{Error, Result};
use crate::model::params::{Entry, Role};
use crate::model::weights::{self as by_name, LoadReport};
use crate::model::{Detector, ModelConfig, NormKind, Params};

/// Puts the starting weights of `model.init` into a network; every rank calls it.
///
/// # Errors
/// A file that is missing, damaged, or of which nothing fits; no network where ImageNet weights must be fetched.
pub fn weights(detector: &mut Detector, config: &ModelConfig, world: &World) -> Result<()> {
    let path = match config.init.as_str() {
        "random" if world.rank() > 0 => return Ok(()),
        "random" => {
            tracing::warn!(
                "training from random weights: no stage of the backbone is frozen, and a good result takes far more epochs than from ImageNet weights"
            );
            if config.norm == NormKind::FrozenBn {
                tracing::warn!(
                    "model.norm = \"frozen_bn\" normalises nothing from random weights: consider model.norm=gn"
                );
            }
            return Ok(());
        }
        "imagenet" => imagenet(config, world)?,
        file => PathBuf::from(file),
    };
    // A work directory stands for its newest checkpoint.
    let path = if path.is_dir() { app::find_checkpoint(&path)?.path } else { path };
    let file = Weights::open(&path)?;
    let report = by_name::load(&file, &mut detector.params)?;
    if report.matched == 0 {
        return Err(Error::Usage(format!(
            "{}: none of its tensors fits the network: {report}",
            path.display()
        )));
    }
    if let Some(names) = &file.classes {
        tracing::info!(
            "{}: its head was trained on {} classes: {}",
            path.display(),
            names.len(),
            shown(names.join(", "))
        );
    }
    let parts = by_part(&detector.params, &report);
    let frozen = frozen_and_absent(&detector.params, &report, config.norm);
    if let Some(first) = frozen.first() {
        return Err(Error::Usage(format!(
            "{}: {} tensors that are not trained would stay at random values, the first is `{first}`: of {parts}\nhint: a file of this backbone ({}), or model.frozen_stages=-1{}",
            path.display(),
            frozen.len(),
            config.backbone.name(),
            if config.norm == NormKind::FrozenBn { " with model.norm=bn or gn" } else { "" }
        )));
    }
    tracing::info!("{} ({}): {report}", path.display(), file.container);
    // A backbone's file rightly says nothing about neck and head; a part that it gives, it must give whole.
    let fits = |(part, found, all): &(&str, usize, usize)| {
        found == all || (*found == 0 && *part != PARTS[0])
    };
    if world.rank() == 0 && !counts(&detector.params, &report).iter().all(fits) {
        tracing::warn!(
            "{}: does not fit the whole network: of {parts}; the rest starts at random values",
            path.display()
        );
    }
    Ok(())
}

/// Parts of a network by the beginning of their names.
const PARTS: [&str; 3] = ["backbone", "neck", "bbox_head"];

/// Of each part: tensors that were loaded, and all. Counters that nothing reads are left out.
fn counts(params: &Params, report: &LoadReport) -> Vec<(&'static str, usize, usize)> {
    let absent = absent(report);
    let count = |part: &'static str| {
        let counted = params.entries.iter().filter(|e| e.role != Role::Counter);
        let names: Vec<&str> =
            counted.map(|e| e.name.as_str()).filter(|n| n.starts_with(part)).collect();
        (part, names.iter().filter(|n| !absent.contains(*n)).count(), names.len())
    };
    PARTS.map(count).to_vec()
}

fn by_part(params: &Params, report: &LoadReport) -> String {
    let text: Vec<String> = counts(params, report)
        .iter()
        .map(|(part, found, all)| format!("{part} {found} of {all}"))
        .collect();
    format!("{} tensors were found", text.join(", "))
}

/// Names of the network's tensors that the file lacks or has in another shape.
fn absent(report: &LoadReport) -> HashSet<&str> {
    // A reshaped entry goes on with both shapes in parentheses.
    let reshaped = report.reshaped.iter().map(|t| t.split(" (").next().unwrap_or(t));
    report.missing.iter().map(String::as_str).chain(reshaped).collect()
}

/// Tensors of the backbone that no step changes, and that the file does not give.
fn frozen_and_absent<'a>(params: &'a Params, report: &LoadReport, norm: NormKind) -> Vec<&'a str> {
    let absent = absent(report);
    let role = |e: &Entry| {
        e.role == Role::Parameter || (norm == NormKind::FrozenBn && e.role != Role::Counter)
    };
    let frozen = |e: &&Entry| !e.trainable && role(e);
    let of_backbone = params.entries.iter().filter(|e| e.name.starts_with(PARTS[0])).filter(frozen);
    of_backbone.map(|e| e.name.as_str()).filter(|n| absent.contains(n)).collect()
}

/// The pinned file of the backbone; rank 0 fetches it when it is not in the cache.
fn imagenet(config: &ModelConfig, world: &World) -> Result<PathBuf> {
    let name = config.backbone.name();
    if (config.width - 1.0).abs() > 0.0 {
        let text =
            format!("model.init = \"imagenet\" needs model.width = 1, found {}", config.width);
        return Err(Error::Usage(format!("{text}\nhint: start with --init random")));
    }
    let pinned = Pinned::find(name)
        .ok_or_else(|| Error::Usage(format!("no ImageNet weights are known for {name}")))?;
    let folder = cache();
    let mut said = Vec::new();
    if world.rank() == 0 && pinned.inside(&folder).is_none() {
        tracing::info!("fetching {}", pinned.url());
        if let Err(e) = pinned.fetch(&folder) {
            said = format!("{e}\nhint: or start with --init random or --init FILE").into_bytes();
        }
    }
    let said = world.broadcast_bytes(said, "ImageNet weights")?;
    if !said.is_empty() {
        return Err(Error::Usage(format!(
            "model.init = \"imagenet\": {}",
            String::from_utf8_lossy(&said)
        )));
    }
    pinned.inside(&folder).ok_or_else(|| {
        let text = "rank 0 has the ImageNet weights, this rank does not find them";
        Error::Usage(format!(
            "{text}: expected {}.pth in {}\nhint: put it there on every node, or share the home directory",
            pinned.stem,
            folder.display()
        ))
    })
}
