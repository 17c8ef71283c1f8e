//! Planes of bytes, each row stored as the difference from the row above, in one zstd frame.

use std::cell::RefCell;

use multiversion::multiversion;

use super::layout::Layout;

thread_local! {
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> =
        const { RefCell::new(None) };
    static PLANES: RefCell<Vec<u8>> = const { RefCell::new(vec![]) };
}

/// Replaces every row but the first of each plane by its difference from the row above, modulo 256.
pub fn subtract_rows(layout: Layout, planes: &mut [u8], size: (usize, usize)) {
    let mut rest = planes;
    for (w, h) in layout.plane_sizes(size) {
        let (plane, behind) = rest.split_at_mut(w * h);
        for i in (w..w * h).rev() {
            plane[i] = plane[i].wrapping_sub(plane[i - w]);
        }
        rest = behind;
    }
}

/// Inverse of [`subtract_rows`].
fn add_rows(layout: Layout, planes: &mut [u8], size: (usize, usize)) {
    let mut rest = planes;
    for (w, h) in layout.plane_sizes(size) {
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

/// Compresses the planes of an image of `size` into one zstd frame.
///
/// # Errors
/// An error of zstd.
pub fn encode(
    layout: Layout,
    mut planes: Vec<u8>,
    size: (usize, usize),
    level: i32,
) -> Result<Vec<u8>, String> {
    subtract_rows(layout, &mut planes, size);
    zstd::bulk::compress(&planes, level).map_err(|e| e.to_string())
}

/// Checks that `bytes` are exactly one zstd frame whose header gives the size of the planes of a
/// `width` x `height` image.
///
/// # Errors
/// The expected and the found frame.
pub fn check(layout: Layout, bytes: &[u8], width: usize, height: usize) -> Result<(), String> {
    let expected = layout.plane_bytes((width, height));
    match zstd::zstd_safe::get_frame_content_size(bytes) {
        Ok(Some(found)) if found == expected as u64 => {}
        Ok(Some(found)) => {
            return Err(format!("expected {expected} bytes of pixels, found {found}"));
        }
        _ => return Err("expected a zstd frame with a content size, found other data".into()),
    }
    match zstd::zstd_safe::find_frame_compressed_size(bytes) {
        Ok(n) if n == bytes.len() => Ok(()),
        Ok(n) => Err(format!("expected a zstd frame of {} bytes, found {n} bytes", bytes.len())),
        Err(_) => Err("the zstd frame is damaged".into()),
    }
}

/// Decompresses planes into a buffer of this thread and passes them to `convert`.
///
/// # Errors
/// A damaged frame, or one of another size than `width` x `height`.
pub fn decode<T>(
    layout: Layout,
    bytes: &[u8],
    (width, height): (usize, usize),
    convert: impl FnOnce(&[u8]) -> T,
) -> Result<T, String> {
    // Checked before the allocation, so that a short frame cannot cause a large one.
    check(layout, bytes, width, height)?;
    let size = (width, height);
    let expected = layout.plane_bytes(size);
    PLANES.with_borrow_mut(|planes| {
        planes.resize(expected, 0);
        let found = DECOMPRESSOR.with_borrow_mut(|slot| {
            if slot.is_none() {
                *slot = Some(zstd::bulk::Decompressor::new().map_err(|e| e.to_string())?);
            }
            let Some(d) = slot.as_mut() else { return Err("no zstd decompressor".to_owned()) };
            d.decompress_to_buffer(bytes, &mut planes[..]).map_err(|e| e.to_string())
        })?;
        if found != expected {
            return Err(format!("expected {expected} bytes of pixels, found {found}"));
        }
        add_rows(layout, planes, size);
        Ok(convert(planes))
    })
}
