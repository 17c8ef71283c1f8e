//! Starting weights: random, ImageNet's from the cache or the network, or any weight file.

use std::path::PathBuf;

use dw_launch::World;
use dw_weights::Weights;
use dw_weights::fetch::{Pinned, cache};

use crate::app;
use crate::error::{Error, Result};
use crate::model::{Detector, ModelConfig, NormKind, weights as by_name};

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
                tracing::warn!("model.norm = \"frozen_bn\" normalises nothing from random weights: consider model.norm=gn");
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
        return Err(Error::Usage(format!("{}: none of its tensors fits the network: {report}", path.display())));
    }
    tracing::info!("{} ({}): {report}", path.display(), file.container);
    Ok(())
}

/// The pinned file of the backbone; rank 0 fetches it when it is not in the cache.
fn imagenet(config: &ModelConfig, world: &World) -> Result<PathBuf> {
    let name = config.backbone.name();
    if (config.width - 1.0).abs() > 0.0 {
        let text = format!("model.init = \"imagenet\" needs model.width = 1, found {}", config.width);
        return Err(Error::Usage(format!("{text}\nhint: start with --init random")));
    }
    let pinned = Pinned::find(name).ok_or_else(|| Error::Usage(format!("no ImageNet weights are known for {name}")))?;
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
        return Err(Error::Usage(format!("model.init = \"imagenet\": {}", String::from_utf8_lossy(&said))));
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
