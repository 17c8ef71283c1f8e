//! Loads weight files into a network by tensor name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use dw_base::text::shown;
use dw_weights::{Dtype, Weights};
use tch::{Kind, Tensor};

use super::Params;
use crate::{Error, Result};

/// Parts of a network: prefixes of tensor names.
pub const PARTS: [&str; 3] = ["backbone", "neck", "bbox_head"];

/// Result of loading a weight file into a network.
#[derive(Debug, Default)]
pub struct LoadReport {
    /// Number of tensors copied.
    pub matched: usize,
    /// Tensors of the network that the file lacks.
    pub missing: Vec<String>,
    /// Tensors of the file that the network lacks.
    pub unused: Vec<String>,
    /// Tensors in both, with different shapes; each with both shapes.
    pub reshaped: Vec<String>,
}

impl std::fmt::Display for LoadReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tensors matched", self.matched)?;
        for (what, names) in [
            ("missing in the file", &self.missing),
            ("of another shape", &self.reshaped),
            ("not used", &self.unused),
        ] {
            if !names.is_empty() {
                // Names come from the file.
                let first = shown(names.iter().take(5).cloned().collect::<Vec<_>>().join(", "));
                let more = if names.len() > 5 { ", ..." } else { "" };
                write!(f, "; {} {what}: {first}{more}", names.len())?;
            }
        }
        Ok(())
    }
}

impl LoadReport {
    /// Whether every tensor of the network was loaded.
    pub fn complete(&self) -> bool {
        self.missing.is_empty() && self.reshaped.is_empty()
    }

    /// The tensors of the file that belong to backbone, neck or head but that the network lacks;
    /// they show that the file is of another network. Counters, constants and the state of a
    /// strategy (`is_state` of the name) do not count: the output of a network does not depend on
    /// them, and programs differ in which of them they save.
    pub fn of_another_network(&self, is_state: impl Fn(&str) -> bool) -> Vec<&String> {
        let matters = |name: &&String| {
            PARTS.iter().any(|part| name.starts_with(&format!("{part}.")))
                && !name.ends_with(".num_batches_tracked")
                && !name.ends_with(".integral.project")
                && !is_state(name)
        };
        self.unused.iter().filter(matters).collect()
    }
}

/// The tensor kind of a file's element type; `None` if the network cannot use it.
fn kind(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::I16 => Kind::Int16,
        Dtype::I8 => Kind::Int8,
        Dtype::U8 => Kind::Uint8,
        Dtype::BOOL => Kind::Bool,
        _ => return None,
    })
}

/// Reads one tensor, and checks that its numbers are finite.
fn tensor(file: &Weights, name: &str) -> Result<Tensor> {
    let t = &file.tensors[name];
    let kind = kind(t.dtype).ok_or_else(|| {
        Error::data(
            &file.path,
            format!("`{name}`"),
            format!("element type {:?} is not supported", t.dtype),
        )
    })?;
    let shape: Vec<i64> = t.shape.iter().map(|&n| n as i64).collect();
    let tensor =
        Tensor::f_from_data_size(&file.read(name)?, &shape, kind).map_err(dw_torch::error)?;
    if tensor.is_floating_point() && tensor.isfinite().all().int64_value(&[]) == 0 {
        return Err(Error::data(
            &file.path,
            format!("`{name}`"),
            "it holds numbers that are not finite (NaN or infinity)\n\
             hint: the training run that wrote the file may have diverged",
        ));
    }
    Ok(tensor)
}

/// Reads all tensors of a weight file.
///
/// # Errors
/// The file is missing or damaged, or holds numbers that are not finite.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let file = Weights::open(path)?;
    file.tensors.keys().map(|name| Ok((name.clone(), tensor(&file, name)?))).collect()
}

/// Copies the tensors of a weight file into the network's tensors of the same names, except those
/// whose name is not `wanted`. Names in ImageNet files lack the prefix `backbone.`.
///
/// # Errors
/// The file is damaged, or holds numbers that are not finite.
pub fn load(
    file: &Weights,
    params: &mut Params,
    wanted: impl Fn(&str) -> bool,
) -> Result<LoadReport> {
    let mut report = LoadReport::default();
    let mut used = BTreeSet::new();
    for e in params.entries.iter_mut().filter(|e| wanted(&e.name)) {
        let bare = e.name.strip_prefix("backbone.").unwrap_or(&e.name);
        let Some((name, t)) =
            file.tensors.get_key_value(&e.name).or_else(|| file.tensors.get_key_value(bare))
        else {
            report.missing.push(e.name.clone());
            continue;
        };
        used.insert(name);
        if t.shape.iter().map(|&n| n as i64).eq(e.tensor.size()) {
            let value = tensor(file, name)?;
            tch::no_grad(|| e.tensor.copy_(&value));
            report.matched += 1;
        } else {
            report.reshaped.push(format!(
                "{} (network {:?}, file {:?})",
                e.name,
                e.tensor.size(),
                t.shape
            ));
        }
    }
    report.unused = file.tensors.keys().filter(|k| !used.contains(k)).cloned().collect();
    Ok(report)
}
