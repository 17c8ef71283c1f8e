//! Scales and flips of images and their boxes.

use dw_shards::format::GtBox;
use dw_shards::pixels::Rgb;
use dw_shards::reader::Record;

use super::config::DataConfig;
use super::resize::resize_into;
use super::sampler::{stream, unit};
use crate::Result;

/// Per-channel mean of ImageNet's pixels (RGB, 0 to 255).
pub const MEAN: [f32; 3] = [123.675, 116.28, 103.53];
/// Per-channel standard deviation of ImageNet's pixels (RGB, 0 to 255).
pub const STD: [f32; 3] = [58.395, 57.12, 57.375];
/// Padded heights and widths are multiples of this, pixels.
pub const ALIGN: u32 = 32;

/// Resized size and flip of one image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Transform {
    /// Width after resizing, pixels.
    pub width: u32,
    /// Height after resizing, pixels.
    pub height: u32,
    /// Whether the image is mirrored left to right.
    pub flip: bool,
}

/// The (width, height) of a `width` x `height` image scaled so that its shorter side becomes
/// `short`, or its longer side `long` where that gives the smaller image. Rounds as mmcv's
/// `rescale_size`.
pub fn keep_ratio(width: u32, height: u32, short: u32, long: u32) -> (u32, u32) {
    let (w, h) = (f64::from(width), f64::from(height));
    let scale = (f64::from(long) / w.max(h)).min(f64::from(short) / w.min(h));
    let side = |v: f64| ((v * scale + 0.5) as u32).max(1);
    (side(w), side(h))
}

impl Transform {
    /// A random scale and flip for training of a `width` x `height` image: a pure function of the
    /// seed, the epoch and the image's position in the epoch.
    pub fn train(
        width: u32,
        height: u32,
        c: &DataConfig,
        seed: u64,
        epoch: usize,
        position: usize,
    ) -> Self {
        let mut rng = stream(&[seed, epoch as u64, position as u64, 1]);
        let flip = unit(&mut rng) < c.flip;
        let short = match c.multi_scale[..] {
            [low, high] => low + (unit(&mut rng) * f64::from(high - low + 1)) as u32,
            _ => c.short_side,
        };
        let (width, height) = keep_ratio(width, height, short, c.long_side);
        Self { width, height, flip }
    }

    /// The scale for evaluation of a `width` x `height` image: `data.short_side`, no flip.
    pub fn eval(width: u32, height: u32, c: &DataConfig) -> Self {
        let (width, height) = keep_ratio(width, height, c.short_side, c.long_side);
        Self { width, height, flip: false }
    }

    /// Boxes `[x1, y1, x2, y2]` in pixels of the network input, and their labels. Crowd boxes and
    /// boxes whose width or height is below one original pixel are dropped; the others are clipped
    /// to the image, and dropped if nothing is left. `original` is the (width, height) of the image
    /// in whose pixels `boxes` are given.
    pub fn boxes(&self, boxes: &[GtBox], original: (u32, u32)) -> (Vec<[f32; 4]>, Vec<i64>) {
        let (sx, sy) = (
            f64::from(self.width) / f64::from(original.0),
            f64::from(self.height) / f64::from(original.1),
        );
        let (w, h) = (f64::from(self.width), f64::from(self.height));
        boxes
            .iter()
            .filter(|b| !b.crowd && b.bbox[2] >= 1.0 && b.bbox[3] >= 1.0)
            .filter_map(|b| {
                let [x, y, bw, bh] = b.bbox;
                let (mut x1, mut x2) = ((x * sx).clamp(0.0, w), ((x + bw) * sx).clamp(0.0, w));
                let (y1, y2) = ((y * sy).clamp(0.0, h), ((y + bh) * sy).clamp(0.0, h));
                if self.flip {
                    (x1, x2) = (w - x2, w - x1);
                }
                (x2 > x1 && y2 > y1)
                    .then_some(([x1 as f32, y1 as f32, x2 as f32, y2 as f32], i64::from(b.label)))
            })
            .unzip()
    }
}

/// The padded (width, height) of images that share a tensor: the largest width and the largest
/// height, each rounded up to a multiple of 32.
pub fn padded(sizes: impl Iterator<Item = (u32, u32)>) -> (u32, u32) {
    let (w, h) = sizes.fold((0, 0), |(w, h), (a, b)| (a.max(w), b.max(h)));
    (w.next_multiple_of(ALIGN), h.next_multiple_of(ALIGN))
}

/// Resizes and flips an image, and writes it into `out`, `[H, W, 3]` of size `padded` (w, h). The
/// padding is 0.
pub fn render(image: &Rgb, t: &Transform, padded: (u32, u32), out: &mut [u8]) {
    resize_into(image, (t.width as usize, t.height as usize), t.flip, padded.0 as usize, out);
}

/// Decodes a record's image; with `data.scaled_decode` at a reduced size that is still at least the
/// size of `t`.
///
/// # Errors
/// Pixels that cannot be decoded.
pub fn decode(record: &Record, t: &Transform, c: &DataConfig) -> Result<Rgb> {
    Ok(if c.scaled_decode {
        record.decode_at_least(t.width as usize, t.height as usize)?
    } else {
        record.decode()?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_match_mmcv_rescale_size() {
        assert_eq!(keep_ratio(640, 480, 800, 1333), (1067, 800));
        assert_eq!(keep_ratio(640, 427, 800, 1333), (1199, 800));
        assert_eq!(keep_ratio(640, 200, 800, 1333), (1333, 417));
        assert_eq!(padded([(100, 64), (33, 65)].into_iter()), (128, 96));
    }

    #[test]
    fn flip_mirrors_pixels_and_boxes() {
        let mut image = Rgb { width: 4, height: 2, data: vec![0; 24] };
        image.data[3] = 255; // red at x = 1, y = 0
        let t = Transform { width: 4, height: 2, flip: true };
        let mut out = vec![7; 3 * 32 * 32];
        render(&image, &t, (32, 32), &mut out);
        assert_eq!([1, 2].map(|x: usize| out[3 * x]), [0, 255]);
        assert!(out[12..96].iter().chain(&out[3 * 32 * 2..]).all(|v| *v == 0), "padding is 0");
        let b = GtBox { id: 1, bbox: [1.0, 0.0, 1.0, 1.0], area: 1.0, label: 7, crowd: false };
        assert_eq!(t.boxes(&[b], (4, 2)), (vec![[2.0, 0.0, 3.0, 1.0]], vec![7]));
    }

    #[test]
    fn crowds_and_boxes_under_one_pixel_are_dropped() {
        let t = Transform { width: 10, height: 10, flip: false };
        let b = |bbox, crowd| GtBox { id: 1, bbox, area: 1.0, label: 0, crowd };
        assert!(
            t.boxes(&[b([1., 1., 5., 5.], true), b([1., 1., 0.5, 5.], false)], (10, 10))
                .0
                .is_empty()
        );
        assert_eq!(t.boxes(&[b([5., 5., 50., 50.], false)], (10, 10)).0, [[5., 5., 10., 10.]]);
    }

    #[test]
    fn boxes_are_scaled_to_the_network_input_and_then_mirrored() {
        let b = |x, w| GtBox { id: 1, bbox: [x, 0., w, 1.], area: 1.0, label: 2, crowd: false };
        let t = Transform { width: 20, height: 5, flip: true };
        assert_eq!(t.boxes(&[b(1., 1.)], (4, 2)).0, [[10., 0., 15., 2.5]]);
        // The limit of one pixel is in pixels of the original.
        let enlarged = Transform { width: 80, height: 40, flip: false };
        assert!(enlarged.boxes(&[b(1., 0.9)], (40, 20)).0.is_empty());
        let reduced = Transform { width: 10, height: 5, flip: false };
        assert_eq!(reduced.boxes(&[b(4., 2.)], (40, 20)).0, [[1., 0., 1.5, 0.25]]);
    }

    #[test]
    fn multi_scale_is_in_range_and_reproducible() {
        let c = DataConfig { multi_scale: vec![480, 960], ..DataConfig::default() };
        let of = |p| Transform::train(1000, 500, &c, 3, 1, p);
        let shorts: Vec<u32> = (0..200).map(|p| of(p).height).collect();
        assert!(
            shorts.iter().all(|s| (480..=667).contains(s)),
            "the long side limits the short side to 667"
        );
        assert!(
            shorts.iter().any(|&s| s < 500)
                && (0..200).any(|p| of(p).flip)
                && (0..200).any(|p| !of(p).flip)
        );
        assert_eq!(of(17), of(17));
    }
}
