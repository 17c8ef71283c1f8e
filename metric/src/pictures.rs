//! Images of a ground-truth file, for the report. Their names come from that file: they do not lead out of
//! the folder that the user gave, and what is no ordinary image file is left out.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

use dw_base::names;
use dw_base::text::shown;
use image::RgbImage;

use crate::error::{Error, Result};

/// Most bytes of an image file.
const LARGEST: u64 = 1 << 30;

/// A folder of images.
pub(crate) struct Pictures {
    root: PathBuf,
    allow_outside: bool,
    /// Images that were asked for in vain, and why the first.
    failed: RefCell<(usize, String)>,
}

impl Pictures {
    /// Opens the folder of `--images`.
    ///
    /// # Errors
    /// No such folder.
    pub(crate) fn open(folder: &Path, allow_outside: bool) -> Result<Self> {
        let bad =
            |e: &dyn std::fmt::Display| Error::Usage(format!("--images {}: {e}", folder.display()));
        let root = folder.canonicalize().map_err(|e| bad(&e))?;
        if !root.is_dir() {
            return Err(bad(&"expected a folder"));
        }
        Ok(Self { root, allow_outside, failed: RefCell::default() })
    }

    /// The image with that `file_name`; one that cannot be had is counted.
    pub(crate) fn get(&self, name: &str) -> Option<RgbImage> {
        self.read(name)
            .map_err(|problem| {
                let mut failed = self.failed.borrow_mut();
                if failed.0 == 0 {
                    failed.1 = format!("{}: {problem}", shown(name));
                }
                failed.0 += 1;
            })
            .ok()
    }

    fn read(&self, name: &str) -> std::result::Result<RgbImage, String> {
        const HINT: &str = "\nhint: --allow-outside reads it all the same";
        if !self.allow_outside {
            names::relative(name).map_err(|e| format!("the name {e}{HINT}"))?;
        }
        let path = self.root.join(name).canonicalize().map_err(|e| e.to_string())?;
        if !self.allow_outside && !path.starts_with(&self.root) {
            return Err(format!("a link leads out of the folder{HINT}"));
        }
        let meta = fs::metadata(&path).map_err(|e| e.to_string())?;
        if !meta.is_file() || meta.len() > LARGEST {
            return Err(format!("expected a regular file of at most {LARGEST} bytes"));
        }
        image::open(&path).map(|image| image.to_rgb8()).map_err(|e| e.to_string())
    }

    /// The text of a warning where images were left out.
    pub(crate) fn warning(&self) -> Option<String> {
        let (count, first) = &*self.failed.borrow();
        (*count > 0)
            .then(|| format!("{count} images of the report are left out; the first: {first}"))
    }
}
