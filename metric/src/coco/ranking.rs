//! Detections of one category ordered by descending score, then image, then position in the input.
//!
//! This order is equivalent to that of pycocotools, which sorts stably by score, first within each
//! image and then the concatenated lists of all images.

use super::types::Detection;

/// Detections of a category by descending score, without those beyond the largest limit per image.
/// All fields have one element per detection.
#[derive(Debug, Default)]
pub(crate) struct Ranked {
    /// Index into the problem's detections.
    pub(crate) detection: Vec<u32>,
    /// Image, as the rank of its id.
    pub(crate) image: Vec<u32>,
    /// Index of the smallest limit that includes the detection.
    pub(crate) level: Vec<u16>,
    /// Confidence.
    pub(crate) score: Vec<f64>,
    /// Area w * h in square pixels.
    pub(crate) size: Vec<f64>,
}

/// A sort key that ascends as the score descends; 0 and -0 are equal, NaN is last.
fn descending(score: f64) -> u64 {
    if score.is_nan() {
        return u64::MAX;
    }
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 63 == 1 { !bits } else { bits | 1 << 63 };
    !ascending
}

impl Ranked {
    /// Ranks `boxes`, indices into `all`, with their `images`. `limits` are detections per image,
    /// ascending.
    pub(crate) fn new(
        all: &[Detection],
        (boxes, images): (&[u32], &[u32]),
        num_images: usize,
        limits: &[usize],
    ) -> Self {
        let key = |(&n, &image): (&u32, &u32)| {
            (descending(all[n as usize].score), u64::from(image) << 32 | u64::from(n))
        };
        let mut keys: Vec<(u64, u64)> = boxes.iter().zip(images).map(key).collect();
        keys.sort_unstable();
        let mut counts = vec![0u32; num_images];
        let mut out = Self {
            detection: Vec::with_capacity(keys.len()),
            image: Vec::with_capacity(keys.len()),
            level: Vec::with_capacity(keys.len()),
            score: Vec::with_capacity(keys.len()),
            size: Vec::with_capacity(keys.len()),
        };
        for (_, place) in keys {
            let (image, n) = ((place >> 32) as u32, place as u32);
            let rank = counts[image as usize];
            let level = limits.iter().take_while(|&&limit| rank as usize >= limit).count();
            if level == limits.len() {
                continue;
            }
            counts[image as usize] += 1;
            let d = &all[n as usize];
            out.detection.push(n);
            out.image.push(image);
            out.level.push(level as u16);
            out.score.push(d.score);
            out.size.push(d.bbox[2] * d.bbox[3]);
        }
        out
    }

    /// Number of consecutive detections from `start` on with the same image and score as that one.
    pub(crate) fn tied(&self, start: usize) -> usize {
        let place = |i: usize| (descending(self.score[i]), self.image[i]);
        (start..self.len()).take_while(|&i| place(i) == place(start)).count()
    }

    /// Number of detections.
    pub(crate) fn len(&self) -> usize {
        self.detection.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_descend_with_the_score() {
        let scores =
            [f64::INFINITY, 17.0, 1.0, 0.5, 1e-300, 0.0, -1e-9, -3.0, f64::NEG_INFINITY, f64::NAN];
        assert!(scores.windows(2).all(|w| descending(w[0]) < descending(w[1])));
        assert_eq!(descending(0.0), descending(-0.0));
    }
}
