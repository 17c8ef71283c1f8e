//! The host name.

/// Returns the host name, as printed by `uname -n`.
pub fn name() -> String {
    gethostname::gethostname().to_string_lossy().into_owned()
}
