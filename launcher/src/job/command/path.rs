//! Programs in the folder of this executable and on PATH.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use dw_base::{Error, Result};

/// Finds a program: in the folder of this executable, which contains the other `dw` programs, else
/// as a shell on the machine that runs it does.
pub(super) fn locate(program: &str, remote: bool) -> Result<OsString> {
    let is_path = program.contains('/');
    let own = std::env::current_exe().ok().and_then(|p| Some(p.parent()?.join(program)));
    if let Some(own) = own.filter(|p| !is_path && p.is_file()) {
        return Ok(own.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let runs = |path: &Path| {
        path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    let found = if is_path {
        runs(Path::new(program))
    } else {
        std::env::split_paths(&path).any(|d| runs(&d.join(program)))
    };
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
