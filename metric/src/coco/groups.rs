//! Boxes grouped by category, each with the rank of its image id among all image ids.

use std::collections::HashMap;

use rayon::prelude::*;

use super::types::Problem;

/// Index from an id to its position in a list.
#[derive(Debug)]
pub(crate) enum Positions {
    /// Dense ids: the position of `low + i` is `slots[i]`.
    Table { low: i64, slots: Vec<u32> },
    /// Sparse ids.
    Map(HashMap<i64, u32>),
}

/// Marks an id without a position.
const NONE: u32 = u32::MAX;

/// (category, image) of a box of an unknown category or image.
const UNKNOWN: (u32, u32) = (NONE, NONE);

impl Positions {
    /// Indexes `ids`; a duplicate id gets its first position.
    pub(crate) fn new(ids: &[i64]) -> Self {
        let (low, high) =
            (ids.iter().min().copied().unwrap_or(0), ids.iter().max().copied().unwrap_or(0));
        // The range of COCO's image ids is about a hundred times their number, which still needs a
        // table of only a few megabytes.
        let span = high.abs_diff(low);
        if span >= 1 << 20 && span >= 8 * ids.len() as u64 {
            let mut map = HashMap::with_capacity(ids.len());
            for (n, &id) in ids.iter().enumerate() {
                map.entry(id).or_insert(n as u32);
            }
            return Self::Map(map);
        }
        let mut slots = vec![NONE; span as usize + 1];
        for (n, &id) in ids.iter().enumerate().rev() {
            slots[(id - low) as usize] = n as u32;
        }
        if ids.is_empty() {
            slots.clear();
        }
        Self::Table { low, slots }
    }

    /// Position of an id, `None` if unknown.
    pub(crate) fn get(&self, id: i64) -> Option<u32> {
        match self {
            Self::Table { low, slots } => {
                let slot = usize::try_from(id.checked_sub(*low)?).ok()?;
                slots.get(slot).copied().filter(|&n| n != NONE)
            }
            Self::Map(map) => map.get(&id).copied(),
        }
    }
}

/// Ground truth or detections, grouped by category in the order of the input.
#[derive(Debug)]
pub(crate) struct Grouped {
    /// Category `k`'s boxes are `starts[k]..starts[k + 1]`.
    starts: Vec<usize>,
    /// Indices into the input.
    boxes: Vec<u32>,
    /// Image of each box, as the rank of its id.
    images: Vec<u32>,
}

impl Grouped {
    /// Counting sort of `places`, the (category, image) of each box or [`UNKNOWN`].
    fn new(categories: usize, places: &[(u32, u32)]) -> Self {
        // Shifted by two: first counts, then sums, then the insertion point of each category.
        let mut starts = vec![0; categories + 2];
        let kept = || places.iter().enumerate().filter(|(_, place)| **place != UNKNOWN);
        for (_, (k, _)) in kept() {
            starts[*k as usize + 2] += 1;
        }
        for k in 2..starts.len() {
            starts[k] += starts[k - 1];
        }
        let total = starts[categories + 1];
        let (mut boxes, mut images) = (vec![0; total], vec![0; total]);
        for (n, &(k, image)) in kept() {
            let at = &mut starts[k as usize + 1];
            (boxes[*at], images[*at]) = (n as u32, image);
            *at += 1;
        }
        Self { starts, boxes, images }
    }

    /// Indices and images of the boxes of category `k`.
    pub(crate) fn of(&self, k: usize) -> (&[u32], &[u32]) {
        let range = self.starts[k]..self.starts[k + 1];
        (&self.boxes[range.clone()], &self.images[range])
    }
}

/// The boxes of a problem, grouped by category.
#[derive(Debug)]
pub(crate) struct Groups {
    /// Number of different images.
    pub(crate) images: usize,
    /// Ground truth.
    pub(crate) truth: Grouped,
    /// Detections.
    pub(crate) detections: Grouped,
}

impl Groups {
    /// Groups the boxes of known images and categories.
    pub(crate) fn new(problem: &Problem) -> Self {
        let mut images = problem.images.to_vec();
        images.sort_unstable();
        images.dedup();
        let categories = Positions::new(problem.categories);
        let image = Positions::new(&images);
        let place = |c: i64, i: i64| categories.get(c).zip(image.get(i)).unwrap_or(UNKNOWN);
        let k = problem.categories.len();
        Self {
            images: images.len(),
            truth: Grouped::new(
                k,
                &problem
                    .truth
                    .par_iter()
                    .map(|g| place(g.category_id, g.image_id))
                    .collect::<Vec<_>>(),
            ),
            detections: Grouped::new(
                k,
                &problem
                    .detections
                    .par_iter()
                    .map(|d| place(d.category_id, d.image_id))
                    .collect::<Vec<_>>(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_of_dense_and_sparse_ids() {
        for ids in [vec![3, -2, 3, 7], vec![i64::MIN, i64::MAX, 0], vec![], vec![0]] {
            let p = Positions::new(&ids);
            for &id in &ids {
                assert_eq!(p.get(id), ids.iter().position(|&i| i == id).map(|n| n as u32));
            }
            for other in [1, -3, 8, i64::MAX - 1, i64::MIN + 1] {
                assert_eq!(p.get(other), None);
            }
        }
    }
}
