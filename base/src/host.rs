//! The name of this machine.

/// Host name, as `uname -n` prints it.
pub fn name() -> String {
    gethostname::gethostname().to_string_lossy().into_owned()
}
