//! Images of a ground-truth file, for the report. File names come from that file: by default they
//! must not point outside the folder that the user gave. What is no regular image file is skipped.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

use dw_base::text::shown;
use dw_base::{Error, Result, names};
use image::{ImageReader, RgbImage};

/// Limit on the size of an image file, bytes.
const MAX_BYTES: u64 = 1 << 30;

/// A folder of images.
pub(crate) struct Pictures {
    root: PathBuf,
    allow_outside: bool,
    /// Number of images that could not be read, and the problem with the first.
    failed: RefCell<(usize, String)>,
}

impl Pictures {
    /// Opens the folder of `--images`.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is no such folder.
    pub(crate) fn open(folder: &Path, allow_outside: bool) -> Result<Self> {
        let bad =
            |e: &dyn std::fmt::Display| Error::Usage(format!("--images {}: {e}", folder.display()));
        let root = folder.canonicalize().map_err(|e| bad(&e))?;
        if !root.is_dir() {
            return Err(bad(&"expected a folder"));
        }
        Ok(Self { root, allow_outside, failed: RefCell::default() })
    }

    /// The image with that `file_name`; `None` if it cannot be read, which is counted.
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
        const HINT: &str = "\nhint: use --allow-outside to read it";
        if !self.allow_outside {
            names::relative(name).map_err(|e| format!("`file_name` {e}{HINT}"))?;
        }
        let path = self.root.join(name).canonicalize().map_err(|e| e.to_string())?;
        if !self.allow_outside && !path.starts_with(&self.root) {
            return Err(format!("the link points outside the folder of --images{HINT}"));
        }
        let meta = fs::metadata(&path).map_err(|e| e.to_string())?;
        if !meta.is_file() || meta.len() > MAX_BYTES {
            return Err(format!("expected a regular file of at most {MAX_BYTES} bytes"));
        }
        // By content, as `dw-pack` does: names with the ending of another format are common.
        let reader = ImageReader::open(&path).and_then(ImageReader::with_guessed_format);
        let image = reader.map_err(|e| e.to_string())?.decode();
        image.map(|image| image.to_rgb8()).map_err(|e| e.to_string())
    }

    /// A warning about the images that could not be read, if any.
    pub(crate) fn warning(&self) -> Option<String> {
        let (count, first) = &*self.failed.borrow();
        (*count > 0)
            .then(|| format!("{count} images are missing in the report; the first: {first}"))
    }
}
