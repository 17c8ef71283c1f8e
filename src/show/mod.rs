//! Pictures for people: predictions on images ([`pred`], with [`labels`]), losses and AP over steps ([`curves`]).

pub mod curves;
pub mod labels;
pub mod pred;

use std::sync::Once;

use plotters::style::{FontStyle, RGBColor, register_font};

/// Colours of classes and lines: distinct on white, on photos, and for most colour-blind eyes (Okabe and Ito's set).
pub const COLORS: [RGBColor; 7] = [
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 158, 115),
    RGBColor(240, 228, 66),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(0, 114, 178),
];

/// Makes the font that is compiled in known to the plotting library, so that no font needs to be installed.
fn font() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if register_font("sans-serif", FontStyle::Normal, epaint_default_fonts::HACK_REGULAR)
            .is_err()
        {
            tracing::warn!("the built-in font cannot be read: pictures have no text");
        }
    });
}

/// A drawing that failed.
fn failed(e: impl std::fmt::Display) -> crate::Error {
    crate::Error::Data(format!("cannot draw: {e}"))
}

/// Saves RGB pixels as a PNG file, aside first.
fn save_png(path: &std::path::Path, width: u32, height: u32, pixels: &[u8]) -> crate::Result<()> {
    let name = path.extension().and_then(|e| e.to_str());
    if name != Some("png") {
        return Err(crate::Error::Usage(format!(
            "-o {}: expected a name that ends in .png",
            path.display()
        )));
    }
    let aside = path.with_extension("writing.png");
    image::save_buffer(&aside, pixels, width, height, image::ColorType::Rgb8).map_err(failed)?;
    fs_err::rename(&aside, path).map_err(crate::Error::io("cannot write", path))
}
