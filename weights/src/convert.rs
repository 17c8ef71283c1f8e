//! Any weight file to `.safetensors`: the names of its state dict, the numbers unchanged.

use std::collections::HashMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use fs_err as fs;
use safetensors::tensor::TensorView;

use crate::error::{Error, Result};
use crate::file::Weights;

/// Writes `weights` to `out`: aside first, then renamed, so that no half-written file is left.
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
    let mut data = Vec::with_capacity(weights.tensors.len());
    for (name, t) in &weights.tensors {
        data.push((name, t, weights.read(name)?));
    }
    let bad = |e: safetensors::SafeTensorError| Error::data(out, format!("cannot write: {e}"));
    let views = data
        .iter()
        .map(|(name, t, bytes)| Ok((*name, TensorView::new(t.dtype, t.shape.clone(), bytes)?)))
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(bad)?;
    // Other readers of safetensors ask for this key.
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    whole(out, |aside| {
        safetensors::serialize_to_file(views, Some(format), aside).map_err(bad)?;
        readable(aside).map_err(Error::io("cannot write", aside))
    })
}

/// Gives a file that a library made private the permissions of an ordinary new file.
fn readable(path: &Path) -> std::io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let ordinary =
        tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(folder)?;
    std::fs::set_permissions(path, ordinary.as_file().metadata()?.permissions())
}

/// Runs `write` on a file beside `out` and renames it into place; removes it when anything fails.
///
/// # Errors
/// What `write` fails with; a file that cannot be synced or renamed.
pub fn whole(out: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let mut aside = out.as_os_str().to_owned();
    aside.push(format!(".{}.part", std::process::id()));
    let aside = PathBuf::from(aside);
    let done = write(&aside).and_then(|()| {
        fs::File::open(&aside)
            .and_then(|f| f.sync_all())
            .map_err(Error::io("cannot sync", &aside))?;
        fs::rename(&aside, out).map_err(Error::io("cannot rename into", out))
    });
    if done.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&aside);
    }
    done
}
