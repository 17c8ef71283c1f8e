//! Conversion of any weight file to `.safetensors`. Names and values stay as the reader returns
//! them.

use std::io::Write;
use std::path::Path;

use dw_base::{Error, Result};
use safetensors::tensor::{Metadata, TensorInfo};

use crate::classes;
use crate::file::{Tensor, Weights};
use crate::output::write_atomically;

/// Maximum header size accepted by readers of the format, in bytes.
const MAX_HEADER: usize = 100_000_000;

/// Writes `weights` to the file `out` atomically, one tensor at a time. Class names and the
/// metadata of a `.safetensors` input are stored in the metadata.
///
/// # Errors
/// A damaged input, an output name without the extension `.safetensors`, an output that would
/// replace the input or a file of a checkpoint, a failed write.
pub fn convert(weights: &Weights, out: &Path) -> Result<()> {
    if out.extension().is_none_or(|e| e != "safetensors") {
        return Err(Error::Usage(format!(
            "cannot convert to {}: the output file name must end in .safetensors",
            out.display()
        )));
    }
    let real = out.canonicalize().ok();
    if real.is_some() && real == weights.path.canonicalize().ok() {
        return Err(Error::Usage(format!(
            "cannot convert to {}: it would replace the input",
            out.display()
        )));
    }
    if real.is_some_and(|file| file.with_file_name("DONE").exists()) {
        return Err(Error::Usage(format!(
            "cannot convert to {}: it would replace a file of a checkpoint",
            out.display()
        )));
    }
    // Ordered by element size, largest first, so that every tensor is aligned.
    let mut tensors: Vec<(&String, &Tensor)> = weights.tensors.iter().collect();
    tensors.sort_by(|a, b| b.1.dtype.cmp(&a.1.dtype).then(a.0.cmp(b.0)));
    let header = header(weights, &tensors).map_err(|e| Error::data(out, "", e))?;
    write_atomically(out, |file| {
        let failed = || Error::io("cannot write", out);
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed())?;
        file.write_all(&header).map_err(failed())?;
        for (name, _) in &tensors {
            file.write_all(&weights.read(name)?).map_err(failed())?;
        }
        Ok(())
    })
}

/// Builds the JSON header, padded to a multiple of 8 bytes.
fn header(
    weights: &Weights,
    tensors: &[(&String, &Tensor)],
) -> std::result::Result<Vec<u8>, String> {
    let mut end = 0;
    let mut infos = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let start = end;
        let size = tensor.num_bytes().ok_or_else(|| format!("the size of `{name}` overflows"))?;
        end += size as usize;
        let (dtype, shape) = (tensor.dtype, tensor.shape.clone());
        infos.push(((*name).clone(), TensorInfo { dtype, shape, data_offsets: (start, end) }));
    }
    let mut metadata = weights.metadata.clone();
    // transformers refuses files without the key `format`.
    metadata.entry("format".to_owned()).or_insert_with(|| "pt".to_owned());
    metadata.extend(weights.classes.as_deref().map(classes::metadata).unwrap_or_default());
    let metadata = Metadata::new(Some(metadata), infos).map_err(|e| e.to_string())?;
    // By way of a value, whose keys are sorted: those of the metadata have a random order.
    let header = serde_json::to_value(&metadata).and_then(|value| serde_json::to_vec(&value));
    let mut header = header.map_err(|e| e.to_string())?;
    header.resize(header.len().next_multiple_of(8), b' ');
    if header.len() > MAX_HEADER {
        return Err(format!(
            "the header would have {} bytes, but the format allows at most {MAX_HEADER}",
            header.len()
        ));
    }
    Ok(header)
}
