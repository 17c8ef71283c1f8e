//! Which image stands at which position: a pure function of seed, epoch and position, so that neither the number of
//! ranks nor an interruption changes the order (pains 1, 12, 13).

use rand_xoshiro::rand_core::{Rng, SeedableRng};
use rand_xoshiro::{SplitMix64, Xoshiro256PlusPlus};

/// Order of an epoch's images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    permutation: Vec<u32>,
}

/// A generator for one purpose: streams of different `parts` are independent.
pub fn stream(parts: &[u64]) -> Xoshiro256PlusPlus {
    let seed = parts.iter().fold(0x6477_2d6f_7264_6572, |state: u64, &p| SplitMix64::seed_from_u64(state ^ p).next_u64());
    Xoshiro256PlusPlus::seed_from_u64(seed)
}

/// A number in `[0, 1)`.
pub fn unit(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

impl Order {
    /// The permutation of `images` in `epoch` (Fisher-Yates).
    pub fn new(images: usize, seed: u64, epoch: usize) -> Self {
        let mut rng = stream(&[seed, epoch as u64]);
        let mut permutation: Vec<u32> = (0..images as u32).collect();
        for i in (1..images).rev() {
            let j = ((u128::from(rng.next_u64()) * (i as u128 + 1)) >> 64) as usize;
            permutation.swap(i, j);
        }
        Self { permutation }
    }

    /// Image at a position of the epoch; past the end the epoch's own permutation starts again.
    pub fn image(&self, position: usize) -> usize {
        self.permutation[position % self.permutation.len()] as usize
    }
}

/// Steps of an epoch: every image at least once.
pub fn steps_per_epoch(images: usize, global_batch: usize) -> usize {
    images.div_ceil(global_batch)
}

/// The positions of a rank's images in step `step` of an epoch: contiguous slices of the global batch.
pub fn positions(step: usize, rank: usize, world: usize, global_batch: usize) -> std::ops::Range<usize> {
    let own = global_batch / world;
    let start = step * global_batch + rank * own;
    start..start + own
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pain 13: the global batches do not depend on the number of ranks.
    #[test]
    fn ranks_cut_the_same_global_batches() {
        let (images, batch) = (37, 24);
        let order = Order::new(images, 5, 2);
        for step in 0..steps_per_epoch(images, batch) {
            let whole: Vec<_> = positions(step, 0, 1, batch).map(|p| order.image(p)).collect();
            for world in [2, 3, 4, 6, 8, 12, 24] {
                let cut: Vec<_> = (0..world).flat_map(|r| positions(step, r, world, batch)).map(|p| order.image(p)).collect();
                assert_eq!(cut, whole, "world {world}");
            }
        }
    }

    /// Pain 1: sizes that do not divide give every rank the same number of steps, and every image is seen.
    #[test]
    fn an_epoch_sees_every_image() {
        for (images, batch) in [(10, 4), (4, 10), (7, 7), (1, 3), (100, 1)] {
            let order = Order::new(images, 1, 0);
            let mut seen = vec![0; images];
            for p in 0..steps_per_epoch(images, batch) * batch {
                seen[order.image(p)] += 1;
            }
            let (low, high) = (seen.iter().min().unwrap(), seen.iter().max().unwrap());
            assert!(*low >= 1 && high - low <= 1, "{images} images in batches of {batch}: {seen:?}");
        }
    }

    #[test]
    fn epochs_and_seeds_differ_and_repeat() {
        assert_eq!(Order::new(50, 1, 1), Order::new(50, 1, 1));
        assert_ne!(Order::new(50, 1, 1), Order::new(50, 1, 2));
        assert_ne!(Order::new(50, 1, 1), Order::new(50, 2, 1));
        // Written down: a later version must not change the order of a run that is resumed.
        assert_eq!(Order::new(8, 0, 0).permutation, FIRST);
    }

    const FIRST: [u32; 8] = [2, 4, 5, 3, 7, 0, 6, 1];
}
