//! Conversion between planes and interleaved RGB.
//!
//! The conversion of Y, Cb and Cr planes equals that of libjpeg-turbo bit for bit. It uses the same
//! fixed-point arithmetic (JFIF, 16 fractional bits) and the same "fancy" upsampling of chroma,
//! where each output sample is 3/4 of the nearer and 1/4 of the farther input sample along each
//! axis.

use multiversion::multiversion;

use super::layout::{Layout, Rgb};

/// 1.0 in fixed point.
const ONE: i32 = 1 << 16;
/// 0.5 in fixed point.
const HALF: i32 = ONE / 2;
// JFIF's coefficients 1.402, 1.772, 0.34414 and 0.71414 in fixed point.
const CR_RED: i32 = 91_881;
const CB_BLUE: i32 = 116_130;
const CB_GREEN: i32 = 22_554;
const CR_GREEN: i32 = 46_802;

/// Planes red - green, green, blue - green ([`Layout::Rgb`]) of an image, modulo 256.
pub fn from_rgb(image: &Rgb) -> Vec<u8> {
    let n = image.width * image.height;
    let mut planes = vec![0; 3 * n];
    let (red, rest) = planes.split_at_mut(n);
    let (green, blue) = rest.split_at_mut(n);
    for (i, p) in image.data.chunks_exact(3).enumerate() {
        red[i] = p[0].wrapping_sub(p[1]);
        green[i] = p[1];
        blue[i] = p[2].wrapping_sub(p[1]);
    }
    planes
}

/// Converts the planes of an image of `size` (width, height) into interleaved RGB.
pub fn to_rgb(layout: Layout, planes: &[u8], size: (usize, usize), out: &mut [u8]) {
    let (w, h) = size;
    let luma = w * h;
    let row = |plane: &'_ [u8], width: usize, y: usize| -> std::ops::Range<usize> {
        debug_assert!((y + 1) * width <= plane.len());
        y * width..(y + 1) * width
    };
    let chroma = layout.plane_sizes(size).get(1).copied().unwrap_or((0, 0));
    let (first, second) = planes[luma..].split_at(chroma.0 * chroma.1);
    let mut wide = [vec![0u8; chroma.0 * 2], vec![0u8; chroma.0 * 2]];
    for (y, line) in out.chunks_exact_mut(w * 3).enumerate() {
        let first_plane = &planes[row(planes, w, y)];
        match layout {
            Layout::Grey => line.chunks_exact_mut(3).zip(first_plane).for_each(|(p, v)| p.fill(*v)),
            Layout::Rgb | Layout::Jpeg => from_green_differences(
                first_plane,
                &first[row(first, w, y)],
                &second[row(second, w, y)],
                line,
            ),
            Layout::Ycc444 => {
                convert(first_plane, &first[row(first, w, y)], &second[row(second, w, y)], line);
            }
            Layout::Ycc422 => {
                for (plane, wide) in [first, second].into_iter().zip(&mut wide) {
                    widen(&plane[row(plane, chroma.0, y)], wide);
                }
                convert(first_plane, &wide[0][..w], &wide[1][..w], line);
            }
            Layout::Ycc420 => {
                // `far` is the next nearest chroma row, on the other side of `y`; at the edges it
                // is `near`.
                let near = y / 2;
                let far =
                    if y % 2 == 0 { near.saturating_sub(1) } else { (near + 1).min(chroma.1 - 1) };
                for (plane, wide) in [first, second].into_iter().zip(&mut wide) {
                    widen_two(
                        &plane[row(plane, chroma.0, near)],
                        &plane[row(plane, chroma.0, far)],
                        wide,
                    );
                }
                convert(first_plane, &wide[0][..w], &wide[1][..w], line);
            }
        }
    }
}

#[multiversion(targets("x86_64+avx2"))]
fn from_green_differences(red: &[u8], green: &[u8], blue: &[u8], out: &mut [u8]) {
    for (((p, r), g), b) in out.chunks_exact_mut(3).zip(red).zip(green).zip(blue) {
        p[0] = r.wrapping_add(*g);
        p[1] = *g;
        p[2] = b.wrapping_add(*g);
    }
}

#[multiversion(targets("x86_64+avx2"))]
fn convert(luma: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
    for (((p, y), cb), cr) in out.chunks_exact_mut(3).zip(luma).zip(cb).zip(cr) {
        let (y, cb, cr) = (i32::from(*y), i32::from(*cb) - 128, i32::from(*cr) - 128);
        let clamp = |v: i32| v.clamp(0, 255) as u8;
        p[0] = clamp(y + ((CR_RED * cr + HALF) >> 16));
        p[1] = clamp(y + ((-CB_GREEN * cb - CR_GREEN * cr + HALF) >> 16));
        p[2] = clamp(y + ((CB_BLUE * cb + HALF) >> 16));
    }
}

/// Upsamples one chroma row to twice its width.
fn widen(row: &[u8], out: &mut [u8]) {
    let n = row.len();
    // libjpeg-turbo repeats the samples of planes this narrow.
    if n <= 2 {
        out.chunks_exact_mut(2).zip(row).for_each(|(o, v)| o.fill(*v));
        return;
    }
    let at = |i: usize| u32::from(row[i]);
    for (i, o) in out.chunks_exact_mut(2).enumerate() {
        o[0] = if i == 0 { row[0] } else { ((at(i) * 3 + at(i - 1) + 1) >> 2) as u8 };
        o[1] = if i + 1 == n { row[n - 1] } else { ((at(i) * 3 + at(i + 1) + 2) >> 2) as u8 };
    }
}

/// Upsamples a chroma row, weighted 3:1 with its neighbour, to twice its width.
fn widen_two(near: &[u8], far: &[u8], out: &mut [u8]) {
    let n = near.len();
    if n <= 2 {
        out.chunks_exact_mut(2).zip(near).for_each(|(o, v)| o.fill(*v));
        return;
    }
    let at = |i: usize| u32::from(near[i]) * 3 + u32::from(far[i]);
    for (i, o) in out.chunks_exact_mut(2).enumerate() {
        let here = at(i);
        o[0] = if i == 0 { (here * 4 + 8) >> 4 } else { (here * 3 + at(i - 1) + 8) >> 4 } as u8;
        o[1] = if i + 1 == n { (here * 4 + 7) >> 4 } else { (here * 3 + at(i + 1) + 7) >> 4 } as u8;
    }
}
