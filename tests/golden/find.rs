//! Finds the cases below a folder.

use std::path::{Path, PathBuf};

/// A case whose data have not been read yet.
pub struct Found {
    pub path: PathBuf,
    /// Path relative to the searched folder, such as `lab/fcos/ordinary`.
    pub name: String,
    pub kind: String,
    /// The detector whose loss the case tests, if its kind covers several.
    pub system: Option<String>,
}

impl Found {
    /// `kind/system`, or only the kind if there is no system.
    pub fn system_key(&self) -> String {
        self.system.as_ref().map_or_else(|| self.kind.clone(), |s| format!("{}/{s}", self.kind))
    }
}

/// The fields of `case.json` that select the test of a case.
#[derive(serde::Deserialize)]
struct Header {
    kind: Option<String>,
    system: Option<String>,
}

/// Folders below `root` that contain a case, which are those without subfolders, ordered by path.
pub fn cases(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.path());
    let mut folders: Vec<PathBuf> = entries.filter(|p| p.is_dir()).collect();
    folders.sort();
    let leaf_or_below = |folder: PathBuf| {
        let below = cases(&folder);
        if below.is_empty() { vec![folder] } else { below }
    };
    folders.into_iter().flat_map(leaf_or_below).collect()
}

/// Kind and name of the case in `path`. For a case without `case.json` (such as those of the
/// metric), the kind is the name of its parent folder.
pub fn describe(root: &Path, path: PathBuf) -> Result<Found, String> {
    let file = path.join("case.json");
    let mut header = Header { kind: None, system: None };
    if file.is_file() {
        let at = |e: String| format!("{}: {e}", file.display());
        let text = std::fs::read_to_string(&file).map_err(|e| at(e.to_string()))?;
        header = serde_json::from_str(&text).map_err(|e| at(e.to_string()))?;
    }
    let parent = path.parent().and_then(Path::file_name).unwrap_or_default();
    let kind = header.kind.unwrap_or_else(|| parent.to_string_lossy().into_owned());
    let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
    // Names are KIND/CASE even if the root is the folder of one kind.
    let name = if name.contains('/') { name } else { format!("{kind}/{name}") };
    Ok(Found { path, name, kind, system: header.system })
}
