//! Plots: predictions on images of a split ([`pred`]) and on any picture ([`picture`], both with
//! [`boxes`] and [`labels`]), loss and AP over the steps of a run ([`curves`]), means with their
//! intervals ([`intervals`]), weights of label assignment ([`weighting`]).

pub mod boxes;
pub mod curves;
pub mod intervals;
pub mod labels;
pub mod picture;
pub mod pred;
pub mod weighting;

use std::io::{Cursor, Write};
use std::path::Path;
use std::sync::Once;

use dw_base::file::write_atomically;
use plotters::style::{FontStyle, RGBColor, register_font};

use crate::{Error, Result};

/// Colours of classes and lines: the palette of Okabe and Ito, which readers with colour blindness
/// can tell apart.
pub const COLORS: [RGBColor; 7] = [
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 158, 115),
    RGBColor(240, 228, 66),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(0, 114, 178),
];

/// Registers the built-in font with the plotting library, so that no font needs to be installed.
fn register_built_in_font() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if register_font("sans-serif", FontStyle::Normal, epaint_default_fonts::HACK_REGULAR)
            .is_err()
        {
            tracing::warn!("cannot read the built-in font: plots have no text");
        }
    });
}

/// The error of a failed drawing operation.
fn drawing_error(e: impl std::fmt::Display) -> Error {
    Error::Bug(format!("cannot draw: {e}"))
}

/// Checks, before anything is computed, that a path is the name of a PNG file in a folder that
/// exists.
///
/// # Errors
/// Another extension, or no such folder.
pub fn check_png(path: &Path) -> Result<()> {
    let bad = |text: &str| Err(Error::Usage(format!("-o {}: {text}", path.display())));
    if !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png")) {
        return bad("expected a file name that ends in .png");
    }
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
            bad("there is no such folder\nhint: create it first")
        }
        _ => Ok(()),
    }
}

/// Writes RGB pixels, `height` rows of `width`, to a PNG file.
fn save_png(path: &Path, width: u32, height: u32, pixels: &[u8]) -> Result<()> {
    check_png(path)?;
    let mut png = Cursor::new(vec![]);
    let (color, format) = (image::ColorType::Rgb8, image::ImageFormat::Png);
    image::write_buffer_with_format(&mut png, pixels, width, height, color, format)
        .map_err(drawing_error)?;
    write_atomically(path, |file| file.write_all(png.get_ref()))
}
