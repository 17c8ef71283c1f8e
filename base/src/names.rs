//! Validation of untrusted names before they are used in paths, so that no path leaves the folder
//! it belongs to.

use std::path::{Component, Path};

use crate::text::is_unsafe;

/// Maximum file name length on common file systems, bytes.
const MAX_LENGTH: usize = 255;

/// Checks a name that becomes a single path component, such as the name of a split. `reserved` is
/// the number of bytes to keep free for a suffix.
///
/// # Errors
/// A description of the problem: an empty name, a separator, a leading dot (reserved for temporary
/// files; this includes `.` and `..`), a control character, or more than `255 - reserved` bytes.
pub fn component(name: &str, reserved: usize) -> Result<(), String> {
    if name.is_empty() {
        return Err("is empty".into());
    }
    if name.contains(['/', '\\']) {
        return Err("contains a path separator".into());
    }
    if name.starts_with('.') {
        return Err("starts with a dot".into());
    }
    if name.chars().any(is_unsafe) {
        return Err("contains a control character".into());
    }
    let max = MAX_LENGTH - reserved;
    if name.len() > max {
        return Err(format!("is longer than {max} bytes"));
    }
    Ok(())
}

/// Checks a name that becomes a relative path below a folder, such as `file_name` of an image.
///
/// # Errors
/// A description of the problem: an empty name, an absolute path, or a `..` component.
pub fn relative(name: &str) -> Result<(), String> {
    if name.is_empty() || name.contains('\0') {
        return Err("is not a file name".into());
    }
    let path = Path::new(name);
    if path.is_absolute() {
        return Err("is an absolute path".into());
    }
    if path.components().any(|c| c == Component::ParentDir) {
        return Err("contains a `..` component".into());
    }
    if path.file_name().is_none() {
        return Err("is not a file name".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_names_are_rejected() {
        for bad in ["", "..", ".", "../x", "a/b", "/etc", "a\\b", ".hidden", "a\n", "\u{1b}[2J"] {
            assert!(component(bad, 0).is_err(), "{bad:?}");
        }
        assert!(component(&"x".repeat(250), 10).is_err());
        for good in ["train2017", "test-dev2017", "val 2", "Prüfung"] {
            assert!(component(good, 30).is_ok(), "{good}");
        }
        for bad in ["", "/a.jpg", "../a.jpg", "x/../../a.jpg", "x/..", "a\0b", "."] {
            assert!(relative(bad).is_err(), "{bad:?}");
        }
        for good in ["a.jpg", "x/y/a.jpg", "..a.jpg", "./a.jpg"] {
            assert!(relative(good).is_ok(), "{good}");
        }
    }
}
