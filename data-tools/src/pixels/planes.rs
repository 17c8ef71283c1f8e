//! Planes of bytes, each row minus the row above, in one zstd frame.

use std::cell::RefCell;

use multiversion::multiversion;

use super::{Layout, Rgb, color};

thread_local! {
    static UNZSTD: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    static PLANES: RefCell<Vec<u8>> = const { RefCell::new(vec![]) };
}

/// Sizes (width, height) of a layout's planes for an image of `size`.
pub fn sizes(layout: Layout, (w, h): (usize, usize)) -> Vec<(usize, usize)> {
    match layout {
        Layout::Grey => vec![(w, h)],
        Layout::Rgb | Layout::Jpeg | Layout::Ycc444 => vec![(w, h); 3],
        Layout::Ycc422 => vec![(w, h), (w.div_ceil(2), h), (w.div_ceil(2), h)],
        Layout::Ycc420 => {
            vec![(w, h), (w.div_ceil(2), h.div_ceil(2)), (w.div_ceil(2), h.div_ceil(2))]
        }
    }
}

/// Replaces every row but a plane's first by its difference from the row above, modulo 256.
pub fn predict(layout: Layout, planes: &mut [u8], size: (usize, usize)) {
    let mut rest = planes;
    for (w, h) in sizes(layout, size) {
        let (plane, behind) = rest.split_at_mut(w * h);
        for i in (w..w * h).rev() {
            plane[i] = plane[i].wrapping_sub(plane[i - w]);
        }
        rest = behind;
    }
}

/// Undoes [`predict`].
fn restore(layout: Layout, planes: &mut [u8], size: (usize, usize)) {
    let mut rest = planes;
    for (w, h) in sizes(layout, size) {
        let (plane, behind) = rest.split_at_mut(w * h);
        for row in 1..h {
            let (above, here) = plane.split_at_mut(row * w);
            add_row(&mut here[..w], &above[(row - 1) * w..]);
        }
        rest = behind;
    }
}

#[multiversion(targets("x86_64+avx2"))]
fn add_row(here: &mut [u8], above: &[u8]) {
    for (p, a) in here.iter_mut().zip(above) {
        *p = p.wrapping_add(*a);
    }
}

/// One zstd frame.
///
/// # Errors
/// What zstd said.
pub fn compress(planes: &[u8], level: i32) -> Result<Vec<u8>, String> {
    zstd::bulk::compress(planes, level).map_err(|e| e.to_string())
}

/// RGB as planes red - green, green, blue - green.
///
/// # Errors
/// What zstd said.
pub fn encode_rgb(image: &Rgb, level: i32) -> Result<Vec<u8>, String> {
    let n = image.width * image.height;
    let mut planes = vec![0; 3 * n];
    let (red, rest) = planes.split_at_mut(n);
    let (green, blue) = rest.split_at_mut(n);
    for (i, p) in image.data.chunks_exact(3).enumerate() {
        red[i] = p[0].wrapping_sub(p[1]);
        green[i] = p[1];
        blue[i] = p[2].wrapping_sub(p[1]);
    }
    predict(Layout::Rgb, &mut planes, (image.width, image.height));
    compress(&planes, level)
}

/// Bytes of all planes of an image.
fn length(layout: Layout, size: (usize, usize)) -> usize {
    sizes(layout, size).iter().map(|(w, h)| w * h).sum()
}

/// Checks that `bytes` are one zstd frame, which says that it holds the planes of an image of
/// `width` x `height`.
///
/// # Errors
/// What was expected and what was found.
pub fn check(layout: Layout, bytes: &[u8], width: usize, height: usize) -> Result<(), String> {
    let expected = length(layout, (width, height));
    match zstd::zstd_safe::get_frame_content_size(bytes) {
        Ok(Some(said)) if said == expected as u64 => {}
        Ok(Some(said)) => return Err(format!("expected {expected} bytes of pixels, found {said}")),
        _ => return Err("expected a zstd frame with its size, found something else".into()),
    }
    match zstd::zstd_safe::find_frame_compressed_size(bytes) {
        Ok(n) if n == bytes.len() => Ok(()),
        Ok(n) => Err(format!("expected a zstd frame of {} bytes, found one of {n}", bytes.len())),
        Err(_) => Err("the zstd frame is damaged".into()),
    }
}

/// Decodes planes of any layout but a JPEG's.
///
/// # Errors
/// A damaged frame, or one of another size than `width` x `height`.
pub fn decode(layout: Layout, bytes: &[u8], width: usize, height: usize) -> Result<Rgb, String> {
    let size = (width, height);
    let expected = length(layout, size);
    // First of all: a short frame must not make anyone allocate for a large image.
    check(layout, bytes, width, height)?;
    PLANES.with_borrow_mut(|planes| {
        planes.resize(expected, 0);
        let found = UNZSTD.with_borrow_mut(|slot| {
            if slot.is_none() {
                *slot = Some(zstd::bulk::Decompressor::new().map_err(|e| e.to_string())?);
            }
            let Some(d) = slot.as_mut() else { return Err("no zstd decoder".to_owned()) };
            d.decompress_to_buffer(bytes, &mut planes[..]).map_err(|e| e.to_string())
        })?;
        if found != expected {
            return Err(format!("expected {expected} bytes of pixels, found {found}"));
        }
        restore(layout, planes, size);
        let mut data = vec![0; 3 * width * height];
        color::to_rgb(layout, planes, size, &mut data);
        Ok(Rgb { width, height, data })
    })
}
