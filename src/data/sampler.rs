//! The order of the images: which image is at which position of an epoch is a pure function of
//! seed, epoch and position, so neither the number of ranks nor a restart changes it.

use std::sync::Arc;

use rand_xoshiro::rand_core::{Rng, SeedableRng};
use rand_xoshiro::{SplitMix64, Xoshiro256PlusPlus};

/// Everything that the order of the images depends on, except seed and epoch.
#[derive(Debug, Clone)]
pub struct SamplerSettings {
    /// Number of images of the dataset.
    pub images: usize,
    /// Images of one global batch.
    pub batch: usize,
    /// Number of contiguous parts of the dataset, one for each node (`data.canonical_nodes`); with
    /// 1, every node reads the whole dataset. Must divide `batch`.
    pub nodes: usize,
    /// Number of consecutive positions that share a padded shape (`data.group`).
    pub group: usize,
    /// Whether each image is taller than wide; `None` unless groups hold images of one orientation
    /// (`data.aspect_grouping`).
    pub portrait: Option<Arc<Vec<bool>>>,
}

impl SamplerSettings {
    /// One part, without grouping by shape.
    pub fn plain(images: usize, batch: usize) -> Self {
        Self { images, batch, nodes: 1, group: 1, portrait: None }
    }

    /// The images of a node: a contiguous, even share, so that each node reads only its own shards.
    pub fn part(&self, node: usize) -> std::ops::Range<usize> {
        let cut = |n: usize| (n as u128 * self.images as u128 / self.nodes as u128) as usize;
        cut(node)..cut(node + 1)
    }
}

/// The order of the images in one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// A permutation of each node's part of the dataset.
    parts: Vec<Vec<u32>>,
    batch: usize,
}

/// A random number generator seeded by `parts` (seed, epoch and so on); different `parts` give
/// independent streams.
pub fn stream(parts: &[u64]) -> Xoshiro256PlusPlus {
    let seed = parts.iter().fold(0x6477_2d6f_7264_6572, |state: u64, &p| {
        SplitMix64::seed_from_u64(state ^ p).next_u64()
    });
    Xoshiro256PlusPlus::seed_from_u64(seed)
}

/// A uniform random number in `[0, 1)`.
pub fn unit(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Fisher-Yates shuffle.
fn shuffle<T>(list: &mut [T], rng: &mut impl Rng) {
    for i in (1..list.len()).rev() {
        let j = ((u128::from(rng.next_u64()) * (i as u128 + 1)) >> 64) as usize;
        list.swap(i, j);
    }
}

impl Order {
    /// The order of `epoch` (from 0): a random permutation of each part, with groups of one
    /// orientation if `s.portrait` is given.
    pub fn new(s: &SamplerSettings, seed: u64, epoch: usize) -> Self {
        let part = |node: usize| {
            let mut rng = if node == 0 {
                stream(&[seed, epoch as u64])
            } else {
                stream(&[seed, epoch as u64, node as u64, 2])
            };
            let mut permutation: Vec<u32> = s.part(node).map(|i| i as u32).collect();
            shuffle(&mut permutation, &mut rng);
            match &s.portrait {
                Some(portrait) => {
                    grouped(&permutation, s.group, |i| portrait[i as usize], &mut rng)
                }
                None => permutation,
            }
        };
        Self { parts: (0..s.nodes).map(part).collect(), batch: s.batch }
    }

    /// The image at a position of the epoch. Each node has a contiguous slice of every global
    /// batch; a part with too few images for the epoch's last batch starts again with its own
    /// permutation.
    pub fn image(&self, position: usize) -> usize {
        let slice = self.batch / self.parts.len();
        let (step, offset) = (position / self.batch, position % self.batch);
        let part = &self.parts[offset / slice];
        part[(step * slice + offset % slice) % part.len()] as usize
    }
}

/// Rearranges a permutation into groups of `group` images of one orientation, in random order,
/// followed by the images left over from both orientations.
fn grouped(
    permutation: &[u32],
    group: usize,
    portrait: impl Fn(u32) -> bool,
    rng: &mut impl Rng,
) -> Vec<u32> {
    let (high, wide): (Vec<u32>, Vec<u32>) = permutation.iter().partition(|&&i| portrait(i));
    let (mut groups, mut rest) = (vec![], vec![]);
    for list in [&high, &wide] {
        let whole = list.chunks_exact(group);
        rest.extend(whole.remainder());
        groups.extend(whole);
    }
    shuffle(&mut groups, rng);
    groups.into_iter().flatten().copied().chain(rest).collect()
}

/// Steps of one epoch, rounded up so that every image is used.
pub fn steps_per_epoch(images: usize, global_batch: usize) -> usize {
    images.div_ceil(global_batch)
}

/// The positions of a rank's images in step `step` (from 0) of an epoch: the rank's contiguous
/// slice of the global batch. `world_size` must divide `global_batch`.
pub fn positions(
    step: usize,
    rank: usize,
    world_size: usize,
    global_batch: usize,
) -> std::ops::Range<usize> {
    let own = global_batch / world_size;
    let start = step * global_batch + rank * own;
    start..start + own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn global_batches_do_not_depend_on_the_number_of_ranks() {
        let (images, batch) = (37, 24);
        let order = Order::new(&SamplerSettings::plain(images, batch), 5, 2);
        for step in 0..steps_per_epoch(images, batch) {
            let whole: Vec<_> = positions(step, 0, 1, batch).map(|p| order.image(p)).collect();
            for ranks in [2, 3, 4, 6, 8, 12, 24] {
                let joined: Vec<_> = (0..ranks)
                    .flat_map(|r| positions(step, r, ranks, batch))
                    .map(|p| order.image(p))
                    .collect();
                assert_eq!(joined, whole, "{ranks} ranks");
            }
        }
    }

    #[test]
    fn an_epoch_uses_every_image_when_the_batch_does_not_divide_the_dataset() {
        for (images, batch) in [(10, 4), (4, 10), (7, 7), (1, 3), (100, 1)] {
            let order = Order::new(&SamplerSettings::plain(images, batch), 1, 0);
            let mut uses = vec![0; images];
            for p in 0..steps_per_epoch(images, batch) * batch {
                uses[order.image(p)] += 1;
            }
            let (low, high) = (uses.iter().min().unwrap(), uses.iter().max().unwrap());
            assert!(
                *low >= 1 && high - low <= 1,
                "{images} images in batches of {batch}: {uses:?}"
            );
        }
    }

    #[test]
    fn orders_differ_by_epoch_and_seed_and_are_reproducible() {
        let of = |images, seed, epoch| Order::new(&SamplerSettings::plain(images, 4), seed, epoch);
        assert_eq!(of(50, 1, 1), of(50, 1, 1));
        assert_ne!(of(50, 1, 1), of(50, 1, 2));
        assert_ne!(of(50, 1, 1), of(50, 2, 1));
        // A fixed value: a later version must not change the order of a run that it resumes.
        assert_eq!(of(8, 0, 0).parts, [[2, 4, 5, 3, 7, 0, 6, 1]]);
    }

    #[test]
    fn nodes_read_only_their_own_part_and_use_every_image() {
        for (images, batch, nodes) in
            [(37, 24, 4), (9, 4, 2), (100, 12, 3), (5, 8, 8), (1000, 64, 1)]
        {
            let s = SamplerSettings { nodes, ..SamplerSettings::plain(images, batch) };
            let order = Order::new(&s, 3, 1);
            let mut used = vec![false; images];
            for p in 0..steps_per_epoch(images, batch) * batch {
                // With fewer images than nodes a part is empty, which the plan rejects.
                if images < nodes {
                    continue;
                }
                let node = p % batch / (batch / nodes);
                let image = order.image(p);
                assert!(
                    s.part(node).contains(&image),
                    "{images} images, {nodes} nodes: node {node} reads {image}"
                );
                used[image] = true;
            }
            assert!(images < nodes || used.iter().all(|u| *u), "{images} images, {nodes} nodes");
        }
    }

    #[test]
    fn aspect_grouping_puts_one_orientation_in_a_group() {
        let portrait = Arc::new((0..101).map(|i| i % 3 == 0).collect::<Vec<_>>());
        let s = SamplerSettings {
            group: 4,
            portrait: Some(portrait.clone()),
            ..SamplerSettings::plain(101, 8)
        };
        let order = Order::new(&s, 1, 0);
        let all: Vec<usize> = (0..101).map(|p| order.image(p)).collect();
        let mixed = all
            .chunks(4)
            .filter(|g| g.iter().any(|i| portrait[*i]) && g.iter().any(|i| !portrait[*i]))
            .count();
        assert!(mixed <= 2, "{mixed} mixed groups: only the images left over may be mixed");
        let orientations: Vec<bool> = all.chunks(4).map(|g| portrait[g[0]]).collect();
        assert!(
            orientations.windows(2).filter(|k| k[0] != k[1]).count() > 4,
            "the groups are shuffled"
        );
        let mut sorted = all.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..101), "every image once");
    }
}
