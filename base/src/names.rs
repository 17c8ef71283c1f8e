//! Names from files that become paths. A path made of a foreign name must stay inside the folder it
//! belongs to.

use std::path::{Component, Path};

use crate::text::is_unsafe;

/// Longest name of a file on the usual file systems, bytes.
const LONGEST: usize = 255;

/// Checks a name that becomes one component of a path, such as a split's.
///
/// # Errors
/// What is wrong with it: empty, a separator, `.` or `..`, hidden (a leading dot is reserved for files
/// being written), a control character, or longer than `255 - reserved` bytes.
pub fn component(name: &str, reserved: usize) -> Result<(), String> {
    if name.is_empty() {
        return Err("is empty".into());
    }
    if name.contains(['/', '\\']) {
        return Err("contains a path separator".into());
    }
    if name.starts_with('.') {
        return Err("begins with a dot".into());
    }
    if name.chars().any(is_unsafe) {
        return Err("contains a control character".into());
    }
    if name.len() > LONGEST - reserved {
        return Err(format!("is longer than {} bytes", LONGEST - reserved));
    }
    Ok(())
}

/// Checks a name that becomes a path below a folder, such as an image's `file_name`.
///
/// # Errors
/// What is wrong with it: empty, absolute, or with a component `..`.
pub fn relative(name: &str) -> Result<(), String> {
    if name.is_empty() || name.contains('\0') {
        return Err("is not a file's name".into());
    }
    let path = Path::new(name);
    if path.is_absolute() {
        return Err("is an absolute path".into());
    }
    if path.components().any(|c| c == Component::ParentDir) {
        return Err("leaves the folder by `..`".into());
    }
    if path.file_name().is_none() {
        return Err("is not a file's name".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_their_folder_are_refused() {
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
