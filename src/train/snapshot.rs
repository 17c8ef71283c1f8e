//! A copy of a run's state in host memory, which is written as a checkpoint.

use std::collections::HashMap;

use dw_shards::coco::Category;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::flat::{Flat, named_views};
use crate::Result;
use crate::model::Params;
use crate::model::params::Entry;

/// What a run needs to resume, besides tensors and configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Number of completed steps.
    pub step: usize,
    /// Seed of the order of images and of the augmentation.
    pub seed: u64,
    /// Images of one step, over all ranks.
    pub global_batch: usize,
    /// Fingerprint of the index of the training split.
    pub data: u32,
    /// Fingerprint of the index of the validation split; `None` without one.
    #[serde(default)]
    pub validation: Option<u32>,
    /// Categories, indexed by label.
    pub categories: Vec<Category>,
}

/// A copy of everything that a checkpoint contains, so that training can continue while it is
/// written.
pub struct Snapshot {
    pub(super) state: State,
    /// The resolved configuration, TOML.
    pub(super) config: String,
    /// All tensors of the network by name, in its order.
    pub(super) model: Vec<(String, Tensor)>,
    /// Momentum of the trained parameters by name.
    pub(super) momentum: Vec<(String, Tensor)>,
}

impl Snapshot {
    /// Copies everything to host memory in four transfers: trained weights, momentum, tensors that
    /// are not trained, and counters. The host waits for a GPU four times, not once for each of
    /// hundreds of tensors, and the thread that writes the checkpoint does not use the GPU.
    /// `config` is the resolved configuration as TOML.
    ///
    /// # Errors
    /// Memory that cannot be allocated, or a failed device.
    pub fn take(state: State, config: &str, params: &Params, flat: &Flat) -> Result<Self> {
        let (weights, momentum) =
            (dw_torch::to_host(&flat.params.detach())?, dw_torch::to_host(&flat.momentum)?);
        let mut tensors: HashMap<String, Tensor> = named_views(&weights, &flat.slots).collect();
        for kind in [params.kind, Kind::Int64] {
            let rest = |e: &&Entry| !tensors.contains_key(&e.name) && e.tensor.kind() == kind;
            let rest: Vec<&Entry> = params.entries.iter().filter(rest).collect();
            let copies = copy_to_host(&rest)?;
            tensors.extend(rest.iter().map(|e| e.name.clone()).zip(copies));
        }
        let model = params.entries.iter().filter_map(|e| tensors.remove_entry(&e.name)).collect();
        Ok(Self {
            state,
            config: config.to_owned(),
            model,
            momentum: named_views(&momentum, &flat.slots).collect(),
        })
    }

    /// The network's tensor of this name.
    #[cfg(test)]
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.model.iter().find(|(n, _)| n == name).map(|(_, t)| t)
    }

    /// Number of completed steps.
    pub fn step(&self) -> usize {
        self.state.step
    }
}

/// Copies tensors of one kind to host memory in a single transfer; returns copies in their shapes.
fn copy_to_host(entries: &[&Entry]) -> Result<Vec<Tensor>> {
    if entries.is_empty() {
        return Ok(vec![]);
    }
    let flat: Vec<Tensor> = entries.iter().map(|e| e.tensor.detach().reshape([-1])).collect();
    let host = dw_torch::to_host(&Tensor::f_cat(&flat, 0).map_err(dw_torch::error)?)?;
    let (mut copies, mut at) = (vec![], 0);
    for e in entries {
        let numel = e.tensor.numel() as i64;
        copies.push(host.narrow(0, at, numel).view(&e.tensor.size()[..]));
        at += numel;
    }
    Ok(copies)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::model::params::{Init, Role};

    #[test]
    fn a_snapshot_is_copied_in_four_buffers_and_unaffected_by_training() {
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
        let state = State {
            step: 1,
            seed: 0,
            global_batch: 1,
            data: 0,
            validation: None,
            categories: vec![],
        };
        let snapshot = Snapshot::take(state, "", &params, &flat).unwrap();
        tch::no_grad(|| {
            params.entries.iter().for_each(|e| drop(e.tensor.shallow_clone().fill_(7)));
        });
        let names: Vec<&String> = snapshot.model.iter().map(|(name, _)| name).collect();
        assert!(
            names.iter().copied().eq(params.entries.iter().map(|e| &e.name)),
            "every tensor, in the order of the network"
        );
        for ((name, t), before) in snapshot.model.iter().zip(&before) {
            assert_eq!(&values(t), before, "{name}");
        }
        // Tensors that are not trained are in one buffer without gaps, counters in another.
        for kind in [Kind::Float, Kind::Int64] {
            let mut end = None;
            for (e, (name, t)) in params.entries.iter().zip(&snapshot.model) {
                if e.trainable || t.kind() != kind {
                    continue;
                }
                let start = t.data_ptr() as usize;
                assert!(end.is_none_or(|end| end == start), "{name} was copied separately");
                end = Some(start + t.numel() * kind.elt_size_in_bytes());
            }
        }
    }
}
