//! Programs in the folder of this executable and on PATH.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use dw_base::{Error, Result};

/// Finds a program: in the folder of this executable, which contains the other `dw` programs, else
/// as a shell on the machine that runs it does.
pub(super) fn locate(program: &str, remote: bool) -> Result<OsString> {
    let is_path = program.contains('/');
    let own = std::env::current_exe().ok().and_then(|p| Some(p.parent()?.join(program)));
    if let Some(own) = own.filter(|p| !is_path && p.is_file()) {
        return Ok(own.into());
    }
    let found = if is_path { runs(Path::new(program)) } else { on_path(program).is_some() };
    if found || remote {
        return Ok(program.into());
    }
    if is_path && Path::new(program).is_file() {
        return Err(Error::Usage(format!(
            "program `{program}` is not executable\nhint: chmod +x, or start it by its interpreter"
        )));
    }
    Err(Error::Usage(format!(
        "program `{program}` not found\nhint: expected a program on PATH, or its path, and its \
         arguments after `--`: dw-launch -n 2 -- dw-train"
    )))
}

/// The word by which a script starts this executable: its name if PATH has this file under it, else
/// its path.
pub(crate) fn own_word(name: &str) -> String {
    let own = std::env::current_exe().and_then(|p| p.canonicalize()).ok();
    let found = on_path(name).and_then(|p| p.canonicalize().ok());
    let path = own.filter(|own| found.as_ref() != Some(own));
    path.as_ref().and_then(|p| p.to_str()).unwrap_or(name).to_owned()
}

/// The program that a shell runs for a name.
fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|p| runs(p))
}

fn runs(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}
