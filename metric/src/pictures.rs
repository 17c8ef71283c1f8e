//! Images of a ground-truth file, for the report. File names come from that file, so by default
//! they must not point outside the folder that the user gave. Anything that is not a regular image
//! file is skipped.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

use dw_base::text::shown;
use dw_base::{Error, Result, names};
use image::imageops::{FilterType, resize};
use image::{ImageReader, RgbImage};

use crate::json::Image;

/// Maximum size of an image file in bytes.
const MAX_BYTES: u64 = 1 << 30;

/// Maximum side length in pixels to which an image is resized to match the ground truth.
const MAX_SIDE: u32 = 1 << 14;

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

    /// The image of an entry of `images`, resized to the size that the entry states, because the
    /// boxes refer to that size. `None` if it cannot be read; such failures are counted.
    pub(crate) fn get(&self, entry: &Image) -> Option<RgbImage> {
        let name = entry.file_name.as_deref();
        let found = name.ok_or_else(|| "the ground truth has no `file_name`".to_owned());
        let found = found.and_then(|name| self.read(name)).and_then(|image| sized(image, entry));
        found
            .map_err(|problem| {
                let mut failed = self.failed.borrow_mut();
                if failed.0 == 0 {
                    let id = format!("image {}", entry.id);
                    failed.1 = format!("{}: {problem}", shown(name.unwrap_or(&id)));
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
        // The format is detected from the content, as in `dw-pack`, because wrong extensions are
        // common.
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

/// Resizes an image to the size that the ground truth states, if any.
///
/// # Errors
/// A different aspect ratio, because the image is then not a resized copy.
fn sized(image: RgbImage, entry: &Image) -> std::result::Result<RgbImage, String> {
    let (Some(width), Some(height)) = (entry.width, entry.height) else { return Ok(image) };
    let found = (f64::from(image.width()), f64::from(image.height()));
    let valid = |side: f64| (1.0..=f64::from(MAX_SIDE)).contains(&side);
    if found == (width, height) || !valid(width) || !valid(height) {
        return Ok(image);
    }
    let scale = (width / found.0, height / found.1);
    if (scale.0 / scale.1 - 1.0).abs() > 0.02 {
        return Err(format!(
            "the image is {} x {} pixels, expected {width} x {height} or a copy of another size",
            found.0, found.1
        ));
    }
    Ok(resize(&image, width as u32, height as u32, FilterType::Triangle))
}
