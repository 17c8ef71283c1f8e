//! Which image stands at which position: a pure function of seed, epoch and position, so that neither the number of
//! ranks nor an interruption changes the order (pains 1, 12, 13).

use std::sync::Arc;

use rand_xoshiro::rand_core::{Rng, SeedableRng};
use rand_xoshiro::{SplitMix64, Xoshiro256PlusPlus};

/// What decides the order of images, beside seed and epoch.
#[derive(Debug, Clone)]
pub struct Arrangement {
    /// Images of the split in use.
    pub images: usize,
    /// Images of a global batch.
    pub batch: usize,
    /// Contiguous parts of the data, one for each node; 1: every node reads all of it. Divides `batch`.
    pub nodes: usize,
    /// Consecutive positions that share a padded shape.
    pub group: usize,
    /// Whether each image is higher than wide, where images of one kind shall share groups.
    pub portrait: Option<Arc<Vec<bool>>>,
}

impl Arrangement {
    /// All images in one part, shapes as they come.
    pub fn plain(images: usize, batch: usize) -> Self {
        Self { images, batch, nodes: 1, group: 1, portrait: None }
    }

    /// The images of a node: an even share of the split's order, so that a node touches its own shards only.
    pub fn part(&self, node: usize) -> std::ops::Range<usize> {
        let cut = |n: usize| (n as u128 * self.images as u128 / self.nodes as u128) as usize;
        cut(node)..cut(node + 1)
    }
}

/// Order of an epoch's images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// A permutation of each node's part.
    parts: Vec<Vec<u32>>,
    batch: usize,
}

/// A generator for one purpose: streams of different `parts` are independent.
pub fn stream(parts: &[u64]) -> Xoshiro256PlusPlus {
    let seed = parts.iter().fold(0x6477_2d6f_7264_6572, |state: u64, &p| {
        SplitMix64::seed_from_u64(state ^ p).next_u64()
    });
    Xoshiro256PlusPlus::seed_from_u64(seed)
}

/// A number in `[0, 1)`.
pub fn unit(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

fn shuffle<T>(list: &mut [T], rng: &mut impl Rng) {
    for i in (1..list.len()).rev() {
        let j = ((u128::from(rng.next_u64()) * (i as u128 + 1)) >> 64) as usize;
        list.swap(i, j);
    }
}

impl Order {
    /// The order of `epoch`: a permutation of each part (Fisher-Yates), with images of one orientation brought together
    /// in groups where that is asked for.
    pub fn new(a: &Arrangement, seed: u64, epoch: usize) -> Self {
        let part = |node: usize| {
            let mut rng = if node == 0 {
                stream(&[seed, epoch as u64])
            } else {
                stream(&[seed, epoch as u64, node as u64, 2])
            };
            let mut permutation: Vec<u32> = a.part(node).map(|i| i as u32).collect();
            shuffle(&mut permutation, &mut rng);
            match &a.portrait {
                Some(portrait) => {
                    grouped(&permutation, a.group, |i| portrait[i as usize], &mut rng)
                }
                None => permutation,
            }
        };
        Self { parts: (0..a.nodes).map(part).collect(), batch: a.batch }
    }

    /// Image at a position of the epoch. Nodes take contiguous slices of every global batch; past the end a part's own
    /// permutation starts again.
    pub fn image(&self, position: usize) -> usize {
        let slice = self.batch / self.parts.len();
        let (step, offset) = (position / self.batch, position % self.batch);
        let part = &self.parts[offset / slice];
        part[(step * slice + offset % slice) % part.len()] as usize
    }
}

/// Groups of `group` images that are all portraits or all not, in random order; what is left over comes last.
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

/// Steps of an epoch: every image at least once.
pub fn steps_per_epoch(images: usize, global_batch: usize) -> usize {
    images.div_ceil(global_batch)
}

/// The positions of a rank's images in step `step` of an epoch: contiguous slices of the global batch.
pub fn positions(
    step: usize,
    rank: usize,
    world: usize,
    global_batch: usize,
) -> std::ops::Range<usize> {
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
        let order = Order::new(&Arrangement::plain(images, batch), 5, 2);
        for step in 0..steps_per_epoch(images, batch) {
            let whole: Vec<_> = positions(step, 0, 1, batch).map(|p| order.image(p)).collect();
            for world in [2, 3, 4, 6, 8, 12, 24] {
                let cut: Vec<_> = (0..world)
                    .flat_map(|r| positions(step, r, world, batch))
                    .map(|p| order.image(p))
                    .collect();
                assert_eq!(cut, whole, "world {world}");
            }
        }
    }

    /// Pain 1: sizes that do not divide give every rank the same number of steps, and every image is seen.
    #[test]
    fn an_epoch_sees_every_image() {
        for (images, batch) in [(10, 4), (4, 10), (7, 7), (1, 3), (100, 1)] {
            let order = Order::new(&Arrangement::plain(images, batch), 1, 0);
            let mut seen = vec![0; images];
            for p in 0..steps_per_epoch(images, batch) * batch {
                seen[order.image(p)] += 1;
            }
            let (low, high) = (seen.iter().min().unwrap(), seen.iter().max().unwrap());
            assert!(
                *low >= 1 && high - low <= 1,
                "{images} images in batches of {batch}: {seen:?}"
            );
        }
    }

    #[test]
    fn epochs_and_seeds_differ_and_repeat() {
        let of = |images, seed, epoch| Order::new(&Arrangement::plain(images, 4), seed, epoch);
        assert_eq!(of(50, 1, 1), of(50, 1, 1));
        assert_ne!(of(50, 1, 1), of(50, 1, 2));
        assert_ne!(of(50, 1, 1), of(50, 2, 1));
        // Written down: a later version must not change the order of a run that is resumed.
        assert_eq!(of(8, 0, 0).parts, [FIRST]);
    }

    /// Nodes read their own part only, every image is seen in an epoch, and the number of ranks changes nothing.
    #[test]
    fn nodes_keep_to_their_part() {
        for (images, batch, nodes) in
            [(37, 24, 4), (9, 4, 2), (100, 12, 3), (5, 8, 8), (1000, 64, 1)]
        {
            let a = Arrangement { nodes, ..Arrangement::plain(images, batch) };
            let order = Order::new(&a, 3, 1);
            let mut seen = vec![false; images];
            for p in 0..steps_per_epoch(images, batch) * batch {
                // With fewer images than nodes a part may be empty: refused before training starts.
                if images < nodes {
                    continue;
                }
                let node = p % batch / (batch / nodes);
                let image = order.image(p);
                assert!(
                    a.part(node).contains(&image),
                    "{images} images, {nodes} nodes: node {node} reads {image}"
                );
                seen[image] = true;
            }
            assert!(images < nodes || seen.iter().all(|s| *s), "{images} images, {nodes} nodes");
        }
    }

    #[test]
    fn portraits_share_groups() {
        let portrait = Arc::new((0..101).map(|i| i % 3 == 0).collect::<Vec<_>>());
        let a = Arrangement {
            group: 4,
            portrait: Some(portrait.clone()),
            ..Arrangement::plain(101, 8)
        };
        let order = Order::new(&a, 1, 0);
        let all: Vec<usize> = (0..101).map(|p| order.image(p)).collect();
        let mixed = all
            .chunks(4)
            .filter(|g| g.iter().any(|i| portrait[*i]) && g.iter().any(|i| !portrait[*i]))
            .count();
        assert!(mixed <= 2, "{mixed} mixed groups: only what is left over");
        let kinds: Vec<bool> = all.chunks(4).map(|g| portrait[g[0]]).collect();
        assert!(
            kinds.windows(2).filter(|k| k[0] != k[1]).count() > 4,
            "the groups themselves are shuffled"
        );
        let mut sorted = all.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..101), "every image once");
    }

    const FIRST: [u32; 8] = [2, 4, 5, 3, 7, 0, 6, 1];
}
