//! EXIF orientation applied to pixels and boxes.

use image::RgbImage;
use image::metadata::Orientation;

use super::layout::Rgb;

/// Treatment of images with an EXIF orientation.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Exif {
    /// Use the stored pixels, as COCO's tools do.
    #[default]
    Ignore,
    /// Rotate or mirror the pixels according to the orientation.
    Apply,
}

/// What the boxes of a turned image refer to where its annotated size is ambiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ExifBoxes {
    /// The stored pixels: the boxes are turned too.
    Stored,
    /// The image as displayed: the boxes are kept.
    Displayed,
}

/// Displayed size of an image whose stored size is (width, height).
pub fn displayed<T>((width, height): (T, T), orientation: u32) -> (T, T) {
    if (5..=8).contains(&orientation) { (height, width) } else { (width, height) }
}

/// Rotates or mirrors an image according to `orientation` (1 to 8).
///
/// # Errors
/// An orientation outside 1 to 8, or pixels that are not 3 x width x height bytes.
pub fn turn(rgb: Rgb, orientation: u32) -> Result<Rgb, String> {
    let how = u8::try_from(orientation).ok().and_then(Orientation::from_exif);
    let how = how.ok_or_else(|| {
        format!("has the EXIF orientation {orientation}, expected a number from 1 to 8")
    })?;
    let image = RgbImage::from_raw(rgb.width as u32, rgb.height as u32, rgb.data)
        .ok_or("has an unexpected number of pixel bytes")?;
    let mut image = image::DynamicImage::ImageRgb8(image);
    image.apply_orientation(how);
    let (width, height) = (image.width() as usize, image.height() as usize);
    Ok(Rgb { width, height, data: image.into_rgb8().into_raw() })
}

/// Rotates or mirrors a box `[x, y, w, h]` of an image whose stored size is (width, height) in
/// pixels.
pub fn turn_box(b: [f64; 4], (width, height): (f64, f64), orientation: u32) -> [f64; 4] {
    let [x, y, w, h] = b;
    let (right, below) = (width - x - w, height - y - h);
    match orientation {
        2 => [right, y, w, h],
        3 => [right, below, w, h],
        4 => [x, below, w, h],
        5 => [y, x, h, w],
        6 => [below, x, h, w],
        7 => [below, right, h, w],
        8 => [y, right, h, w],
        _ => b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For every orientation, the pixels of a marked rectangle are exactly those inside the turned
    /// box.
    #[test]
    fn boxes_turn_with_the_pixels() {
        let (width, height) = (7, 5);
        let marked = [1.0, 2.0, 3.0, 1.0];
        let mut data = vec![0; 3 * width * height];
        for x in 1..4 {
            data[3 * (2 * width + x)] = 255;
        }
        for orientation in 1..=8 {
            let rgb = Rgb { width, height, data: data.clone() };
            let turned = turn(rgb, orientation).unwrap();
            assert_eq!((turned.width, turned.height), displayed((width, height), orientation));
            let [x, y, w, h] = turn_box(marked, (7.0, 5.0), orientation).map(|v| v as usize);
            assert_eq!(w * h, 3);
            for row in 0..turned.height {
                for column in 0..turned.width {
                    let inside = (x..x + w).contains(&column) && (y..y + h).contains(&row);
                    let red = turned.data[3 * (row * turned.width + column)];
                    assert_eq!(red == 255, inside, "{orientation}: {column}, {row}");
                }
            }
        }
        assert!(turn(Rgb { width: 1, height: 1, data: vec![0; 3] }, 9).is_err());
    }
}
