//! The images of a batch: 8-bit pixels in host memory, normalised on the device that uses them.
//!
//! 8-bit pixels need a quarter of the bytes of f32, both for the writes of the loader threads and
//! for the transfer to a GPU.

use tch::{Device, Kind, Tensor};

use super::augment::{MEAN, STD};
use crate::Result;

/// Resized 8-bit images, padded to one size, in host memory.
#[derive(Debug)]
pub struct Images {
    /// RGB `[B, H, W, 3]`, u8. The padding is 0.
    pub pixels: Tensor,
    /// (height, width) of each image before padding `[B, 2]`, i64; `None` if no image has padding.
    pub sizes: Option<Tensor>,
}

impl Images {
    /// Images of `sizes` (width, height), padded to (w, h). `fill` writes image `i` as `[H, W, 3]`.
    /// The memory is page-locked when `device`, the consumer, is a GPU.
    ///
    /// # Errors
    /// Errors of `fill`, or memory that cannot be allocated.
    pub fn new(
        sizes: &[(u32, u32)],
        (w, h): (u32, u32),
        device: Device,
        mut fill: impl FnMut(usize, &mut [u8]) -> Result<()>,
    ) -> Result<Self> {
        let shape = [sizes.len() as i64, i64::from(h), i64::from(w), 3];
        let pixels = dw_torch::host_bytes(&shape, device.is_cuda())?;
        // SAFETY: the tensor is new, contiguous and not shared, and holds this many bytes.
        let bytes = unsafe {
            std::slice::from_raw_parts_mut(pixels.data_ptr().cast::<u8>(), pixels.numel())
        };
        for (i, out) in bytes.chunks_exact_mut(3 * (w * h) as usize).enumerate() {
            fill(i, out)?;
        }
        let padded = sizes.iter().any(|size| *size != (w, h));
        let sizes = padded.then(|| {
            let numbers: Vec<i64> =
                sizes.iter().flat_map(|(w, h)| [i64::from(*h), i64::from(*w)]).collect();
            Tensor::from_slice(&numbers).view([-1, 2])
        });
        let sizes = match sizes {
            Some(sizes) if device.is_cuda() => Some(dw_torch::page_locked(&sizes)?),
            sizes => sizes,
        };
        Ok(Self { pixels, sizes })
    }
}

/// Mean and scale of the pixels on one device. Created once: copying them for every batch would
/// make the host wait for the GPU.
#[derive(Debug)]
pub struct Normalisation {
    mean: Tensor,
    scale: Tensor,
}

impl Normalisation {
    /// Normalisation with ImageNet's mean and standard deviation.
    pub fn new(device: Device) -> Self {
        let there = |v: [f32; 3]| Tensor::from_slice(&v).to_device(device);
        Self { mean: there(MEAN), scale: there(STD.map(|s| 1.0 / s)) }
    }

    /// Network input `[B, 3, H, W]` of `kind`, channels-last, on the device of the constants:
    /// `(pixel - mean) / deviation`, computed in f32, and 0 in the padding.
    pub fn apply(&self, images: &Images, kind: Kind) -> Tensor {
        let device = self.mean.device();
        let pixels = dw_torch::upload(&images.pixels, device).to_kind(Kind::Float);
        let mut x_bhwc = (pixels - &self.mean) * &self.scale;
        if let Some(sizes) = &images.sizes {
            let (h, w) = (x_bhwc.size()[1], x_bhwc.size()[2]);
            let sizes = dw_torch::upload(sizes, device);
            let beyond = |n: i64, axis: i64| {
                let at = Tensor::arange(n, (Kind::Int64, device));
                at.unsqueeze(0).ge_tensor(&sizes.select(1, axis).unsqueeze(1))
            };
            let padding = beyond(h, 0).unsqueeze(2).logical_or(&beyond(w, 1).unsqueeze(1));
            let _ = x_bhwc.masked_fill_(&padding.unsqueeze(3), 0.0);
        }
        x_bhwc.to_kind(kind).permute([0, 3, 1, 2])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares with the same arithmetic on the host, value by value; the padding is 0 even where
    /// its bytes are not.
    #[test]
    fn normalised_pixels_are_those_of_the_host_to_the_last_bit() {
        let sizes = [(5, 3), (4, 7)];
        for (sizes, has_padding) in [(&sizes[..], true), (&[(5, 7), (5, 7)][..], false)] {
            let images = Images::new(sizes, (5, 7), Device::Cpu, |i, out| {
                out.iter_mut().enumerate().for_each(|(n, o)| *o = (n * 7 + i * 31) as u8);
                Ok(())
            });
            let images = images.unwrap();
            assert_eq!(images.sizes.is_some(), has_padding);
            let x = Normalisation::new(Device::Cpu).apply(&images, Kind::Float);
            assert_eq!(x.size(), [2, 3, 7, 5]);
            for (i, (width, height)) in sizes.iter().enumerate() {
                for n in 0..7 * 5 * 3 {
                    let (y, column, c) = (n / 15, n / 3 % 5, n % 3);
                    let inside = column < *width as usize && y < *height as usize;
                    let byte = (n * 7 + i * 31) as u8;
                    let value = (f32::from(byte) - MEAN[c]) * (1.0 / STD[c]);
                    let expected = if inside { value } else { 0.0 };
                    let found = x.double_value(&[i as i64, c as i64, y as i64, column as i64]);
                    assert_eq!(found.to_bits(), f64::from(expected).to_bits(), "{i} {n}");
                }
            }
        }
    }
}
