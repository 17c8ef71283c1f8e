//! Detection on pictures that are not part of a split.

use std::path::Path;

use dw_shards::coco::Category;
use dw_shards::input::{self, MAX_IMAGE_BYTES};
use dw_shards::pixels::{Rgb, decode_file};

use super::config::EvalConfig;
use super::detect::Detection;
use super::infer::{Decoded, Timings, detect_images};
use crate::data::DataConfig;
use crate::model::Detector;
use crate::{Error, Result};

/// A network with everything that turns a picture into detections.
#[derive(Debug)]
pub struct Predictor {
    /// The network.
    pub detector: Detector,
    /// Categories by label.
    pub categories: Vec<Category>,
    /// Size of the network input.
    pub input: DataConfig,
    /// Post-processing.
    pub eval: EvalConfig,
}

impl Predictor {
    /// Detections on one picture, by descending score; boxes are in pixels of the picture.
    ///
    /// On the CPU they equal those of `dw-eval` and `dw-detect` with one picture per batch: bit for
    /// bit if libtorch uses one thread (`tch::set_num_threads(1)`), else up to rounding. Sets this
    /// thread's CPU flag that rounds subnormal numbers to 0.
    ///
    /// # Errors
    /// A picture without pixels or whose number of bytes does not fit its size, or a failure of
    /// libtorch.
    pub fn detect(&self, picture: &Rgb) -> Result<Vec<Detection>> {
        let (width, height, bytes) = (picture.width, picture.height, picture.data.len());
        let expected = width.checked_mul(height).and_then(|n| n.checked_mul(3));
        if bytes == 0 || expected != Some(bytes) {
            return Err(Error::Inconsistent(format!(
                "picture of {width} x {height} pixels: expected at least one pixel and 3 bytes for \
                 each, found {bytes} bytes"
            )));
        }
        dw_torch::flush_denormals();
        let images = [Decoded { pixels: picture, original: (width as u32, height as u32) }];
        let (device, mut timings) = (self.detector.params.device, Timings::default());
        let settings = (&self.input, &self.eval);
        let found = detect_images(&self.detector, &images, settings, device, &mut timings)?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Name of a detection's class.
    pub fn name(&self, detection: &Detection) -> &str {
        self.categories.get(detection.label as usize).map_or("", |c| &c.name)
    }
}

/// Reads an image file. EXIF orientation is ignored, as in COCO's tools.
///
/// # Errors
/// A file that cannot be read, or is not a picture, or is damaged.
pub fn read_picture(path: &Path) -> Result<Rgb> {
    let bytes = input::read(path, MAX_IMAGE_BYTES).map_err(Error::io("cannot read", path))?;
    decode_file(&bytes).map_err(|e| Error::data(path, "", e))
}
