//! Bilinear resizing of 8-bit images, bit-exact with OpenCV's `INTER_LINEAR`, fused with the
//! horizontal flip.
//!
//! mmdetection resizes with OpenCV, so this uses the same fixed-point arithmetic: weights with 11
//! fractional bits, intermediate rows with 7 fractional bits, and no anti-aliasing when shrinking.

use dw_shards::pixels::Rgb;

/// Interpolation along one axis: for every target index the two source indices and their weights.
struct Axis {
    index: Vec<[usize; 2]>,
    weight: Vec<[i32; 2]>,
}

/// 1.0 as a fixed-point weight (11 fractional bits).
const ONE: f32 = 2048.0;

impl Axis {
    /// Maps `target` indices to `source` indices. With `snap`, a position beyond the outermost
    /// sample gets that sample with weight 1, as for columns in OpenCV; for rows OpenCV takes the
    /// outermost sample twice, with both weights.
    fn new(source: usize, target: usize, snap: bool) -> Self {
        let scale = 1.0 / (target as f64 / source as f64);
        let last = source as i64 - 1;
        let (mut index, mut weight) = (vec![], vec![]);
        for i in 0..target {
            let at = ((i as f64 + 0.5) * scale - 0.5) as f32;
            let low = at.floor();
            let (mut fraction, low) = (at - low, low as i64);
            if snap && (low < 0 || low >= last) {
                fraction = 0.0;
            }
            let clamp = |i: i64| i.clamp(0, last) as usize;
            index.push([clamp(low), clamp(low + 1)]);
            weight.push([
                ((1.0 - fraction) * ONE).round_ties_even() as i32,
                (fraction * ONE).round_ties_even() as i32,
            ]);
        }
        Self { index, weight }
    }
}

/// Resizes `image` to (width, height), mirrors it left to right if `flip`, and writes it into
/// `out`: interleaved RGB, rows of `stride` pixels. The rest of `out`, right of the image and below
/// it, is set to 0.
pub fn resize_into(
    image: &Rgb,
    (width, height): (usize, usize),
    flip: bool,
    stride: usize,
    out: &mut [u8],
) {
    let mut columns = Axis::new(image.width, width, true);
    if flip {
        columns.index.reverse();
        columns.weight.reverse();
    }
    let rows = Axis::new(image.height, height, false);
    // The last two source rows, resized horizontally, with their indices: consecutive target rows
    // share source rows.
    let mut cached: [(usize, Vec<i16>); 2] =
        [(usize::MAX, vec![0; width * 3]), (usize::MAX, vec![0; width * 3])];
    let (body, rest) = out.split_at_mut((height * stride * 3).min(out.len()));
    rest.fill(0);
    for ((line, index), weight) in
        body.chunks_exact_mut(stride * 3).zip(&rows.index).zip(&rows.weight)
    {
        let [first, second] = *index;
        let fetch = |slot: usize, source: usize, cached: &mut [(usize, Vec<i16>); 2]| {
            cached[slot].0 = source;
            along_row(
                &image.data[source * image.width * 3..][..image.width * 3],
                &columns,
                &mut cached[slot].1,
            );
        };
        if cached[0].0 != first && cached[1].0 == first {
            cached.swap(0, 1);
        }
        if cached[0].0 != first {
            fetch(0, first, &mut cached);
        }
        if second != first && cached[1].0 != second {
            fetch(1, second, &mut cached);
        }
        let (pixels, padding) = line.split_at_mut(width * 3);
        let second = if second == first { &cached[0].1 } else { &cached[1].1 };
        across_rows(&cached[0].1, second, *weight, pixels);
        padding.fill(0);
    }
}

/// Resizes one source row horizontally; the result has 7 fractional bits.
fn along_row(row: &[u8], columns: &Axis, out: &mut [i16]) {
    for ((o, [a, b]), [wa, wb]) in out.chunks_exact_mut(3).zip(&columns.index).zip(&columns.weight)
    {
        let (p, q) = (&row[a * 3..a * 3 + 3], &row[b * 3..b * 3 + 3]);
        for c in 0..3 {
            o[c] = ((i32::from(p[c]) * wa + i32::from(q[c]) * wb) >> 4) as i16;
        }
    }
}

/// Interpolates between two resized rows with weights `a` and `b`, and rounds to 0 to 255.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma"))]
fn across_rows(first: &[i16], second: &[i16], [a, b]: [i32; 2], out: &mut [u8]) {
    for ((o, p), q) in out.iter_mut().zip(first).zip(second) {
        let value = (((a * i32::from(*p)) >> 16) + ((b * i32::from(*q)) >> 16) + 2) >> 2;
        *o = value.clamp(0, 255) as u8;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use dw_weights::Weights;

    use super::*;
    use crate::data::sampler::{stream, unit};

    fn resize(image: &Rgb, width: usize, height: usize, flip: bool) -> Vec<u8> {
        let mut out = vec![7; width * height * 3];
        resize_into(image, (width, height), flip, width, &mut out);
        out
    }

    fn noise(width: usize, height: usize, seed: u64) -> Rgb {
        let mut rng = stream(&[seed]);
        Rgb {
            width,
            height,
            data: (0..width * height * 3).map(|_| (unit(&mut rng) * 256.0) as u8).collect(),
        }
    }

    /// Cases of `tests/data/resize/make.py`: noise and gradients, enlarged and shrunk, also from
    /// and to a single row or column.
    #[test]
    fn is_bit_exact_with_opencv() {
        let cases = Weights::open(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/resize/cases.safetensors"),
        )
        .unwrap();
        let of = |name: &str| {
            let shape = &cases.tensors[name].shape;
            Rgb { width: shape[1], height: shape[0], data: cases.read(name).unwrap().into_owned() }
        };
        let outputs: Vec<&String> = cases.tensors.keys().filter(|n| n.contains(".to.")).collect();
        assert!(outputs.len() > 20);
        for name in outputs {
            let (source, expected) = (of(name.split(".to.").next().unwrap()), of(name));
            let found = resize(&source, expected.width, expected.height, false);
            let differ = found.iter().zip(&expected.data).filter(|(f, e)| f != e).count();
            assert_eq!(differ, 0, "{name}: number of different values");
        }
    }

    #[test]
    fn is_within_one_level_of_exact_bilinear_interpolation() {
        for (n, (w, h, tw, th)) in
            [(13, 9, 40, 31), (40, 31, 13, 9), (5, 5, 5, 5), (1, 7, 6, 3), (64, 48, 107, 80)]
                .into_iter()
                .enumerate()
        {
            let image = noise(w, h, n as u64);
            let found = resize(&image, tw, th, false);
            let axis = |i: usize, from: usize, to: usize| {
                let at = (((i as f64 + 0.5) * from as f64 / to as f64) - 0.5)
                    .clamp(0.0, from as f64 - 1.0);
                (at.floor() as usize, (at.floor() as usize + 1).min(from - 1), at - at.floor())
            };
            for y in 0..th {
                for x in 0..tw {
                    let ((x0, x1, fx), (y0, y1, fy)) = (axis(x, w, tw), axis(y, h, th));
                    for c in 0..3 {
                        let p = |x: usize, y: usize| f64::from(image.data[(y * w + x) * 3 + c]);
                        let row = |y: usize| p(x0, y) * (1.0 - fx) + p(x1, y) * fx;
                        let exact = row(y0) * (1.0 - fy) + row(y1) * fy;
                        let off = (f64::from(found[(y * tw + x) * 3 + c]) - exact).abs();
                        assert!(off < 0.8, "{w} x {h} to {tw} x {th} at {x}, {y}: off by {off}");
                    }
                }
            }
        }
    }

    #[test]
    fn same_size_is_the_identity_and_flip_mirrors() {
        let image = noise(17, 6, 3);
        assert!(resize(&image, 17, 6, false) == image.data);
        let (plain, mirrored) = (resize(&image, 30, 11, false), resize(&image, 30, 11, true));
        for (a, b) in plain.chunks_exact(90).zip(mirrored.chunks_exact(90)) {
            assert!(a.chunks_exact(3).eq(b.chunks_exact(3).rev()));
        }
    }
}
