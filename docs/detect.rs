//! Detects on a picture with a saved network.
use std::path::Path;

use dw::app::saved::Saved;
use dw::eval::detect::Detection;
use dw::eval::read_picture;
use tch::Device;

/// Class, score and box `[x1, y1, x2, y2]` in pixels of each detection, the best first.
pub fn detect(weights: &Path, picture: &Path) -> dw::Result<Vec<(String, f32, [f32; 4])>> {
    let predictor = Saved::find(weights, None, &[])?.predictor(Device::Cpu)?;
    let row = |d: &Detection| (predictor.name(d).to_owned(), d.score, d.bbox);
    Ok(predictor.detect(&read_picture(picture)?)?.iter().map(row).collect())
}
