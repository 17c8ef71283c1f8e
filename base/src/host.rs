//! The machine that the process runs on.

/// Returns the host name, as printed by `uname -n`.
pub fn name() -> String {
    gethostname::gethostname().to_string_lossy().into_owned()
}

/// Returns an id of the machine's current boot: containers on the same machine have different host
/// names, and machines can have the same one. `None` if the system has none.
pub fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned()).filter(|id| !id.is_empty())
}
