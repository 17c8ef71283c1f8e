//! Any weight file to `.safetensors`: the names of its state dict, the numbers unchanged.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use safetensors::tensor::{Metadata, TensorInfo};

use crate::classes;
use crate::error::{Error, Result};
use crate::file::{Tensor, Weights};

/// Longest header that readers of the format take, bytes.
const LONGEST_HEADER: usize = 100_000_000;

/// Writes `weights` to `out`, tensor by tensor: whole or not at all, readable for those who can read an
/// ordinary new file. Class names go into the metadata.
///
/// # Errors
/// A damaged storage, another file ending than `.safetensors`, a full disk.
pub fn convert(weights: &Weights, out: &Path) -> Result<()> {
    if out.extension().is_none_or(|e| e != "safetensors") {
        return Err(Error::Usage(format!(
            "{}: the output's name must end in .safetensors",
            out.display()
        )));
    }
    // The widest types first: every tensor is aligned then.
    let mut tensors: Vec<(&String, &Tensor)> = weights.tensors.iter().collect();
    tensors.sort_by(|a, b| b.1.dtype.cmp(&a.1.dtype).then(a.0.cmp(b.0)));
    let header = header(weights, &tensors).map_err(|e| Error::data(out, e))?;
    whole(out, |file| {
        let failed = || Error::io("cannot write", out);
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed())?;
        file.write_all(&header).map_err(failed())?;
        for (name, tensor) in &tensors {
            let bytes = weights.read(name)?;
            if tensor.bytes() != Some(bytes.len() as u64) {
                return Err(Error::data(
                    &weights.path,
                    format!("`{name}` is not as long as it says"),
                ));
            }
            file.write_all(&bytes).map_err(failed())?;
        }
        Ok(())
    })
}

/// The header's JSON, padded to whole words of 8 bytes.
fn header(
    weights: &Weights,
    tensors: &[(&String, &Tensor)],
) -> std::result::Result<Vec<u8>, String> {
    let mut end = 0;
    let mut infos = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let start = end;
        end += tensor.bytes().ok_or("more bytes than can be counted")? as usize;
        let (dtype, shape) = (tensor.dtype, tensor.shape.clone());
        infos.push(((*name).clone(), TensorInfo { dtype, shape, data_offsets: (start, end) }));
    }
    // Other readers of safetensors ask for the key `format`.
    let mut facts = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    if let Some(names) = &weights.classes {
        facts.insert(classes::KEY.to_owned(), serde_json::json!(names).to_string());
    }
    let metadata = Metadata::new(Some(facts), infos).map_err(|e| e.to_string())?;
    let mut header = serde_json::to_vec(&metadata).map_err(|e| e.to_string())?;
    header.resize(header.len().next_multiple_of(8), b' ');
    if header.len() > LONGEST_HEADER {
        return Err(format!("its header would have more than {LONGEST_HEADER} bytes"));
    }
    Ok(header)
}

/// Writes a file by `write`: it is there when that succeeds, and else what was there before.
///
/// # Errors
/// What `write` fails with; a folder that cannot be written, a full disk.
pub(crate) fn whole(out: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let written = dw_base::file::write_atomically(out, |f| write(f).map_err(io::Error::other));
    written.map_err(|e| e.downcast().unwrap_or_else(Error::io("cannot write", out)))
}
