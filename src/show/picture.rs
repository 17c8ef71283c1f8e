//! A whole picture with the boxes that were detected on it.

use std::path::Path;

use dw_shards::coco::Category;
use dw_shards::pixels::Rgb;
use plotters::backend::BitMapBackend;
use plotters::prelude::*;

use super::boxes::{Style, draw_detections};
use super::{drawing_error, register_built_in_font, save_png};
use crate::Result;
use crate::eval::detect::Detection;

/// Draws detections, given by descending score, on their picture, and writes it with its original
/// size to the PNG file `out`.
///
/// # Errors
/// A file that cannot be written, or a failure of the drawing library.
pub fn draw(
    mut picture: Rgb,
    detections: &[Detection],
    categories: &[Category],
    out: &Path,
) -> Result<()> {
    register_built_in_font();
    let size = (picture.width as u32, picture.height as u32);
    {
        let root = BitMapBackend::with_buffer(&mut picture.data, size).into_drawing_area();
        draw_detections(&root, size, categories, detections, (1.0, 1.0), Style::of(size))?;
        root.present().map_err(drawing_error)?;
    }
    save_png(out, size.0, size.1, &picture.data)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also where a label has no room, and where a box reaches beyond the picture.
    #[test]
    fn pictures_of_any_size_keep_it() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a.png");
        let categories = [Category { id: 1, name: "a very long name of a class".repeat(9) }];
        for (width, height) in [(1, 1), (7, 300), (200, 90), (900, 800)] {
            let picture = Rgb { width, height, data: vec![90; 3 * width * height] };
            let found = |bbox| Detection { bbox, score: 0.5, label: 0 };
            let found = [found([0.0, 0.0, 1e4, 1e4]), found([3.0, 3.0, 3.0, 60.0])];
            draw(picture, &found, &categories, &out).unwrap();
            let drawn = crate::eval::read_picture(&out).unwrap();
            assert_eq!((drawn.width, drawn.height), (width, height));
            assert!(drawn.data.iter().any(|v| *v != 90), "{width} x {height}");
        }
    }
}
