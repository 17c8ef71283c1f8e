//! F1 of each image, to select images for the report.

use std::cmp::Ordering;

use super::scene::{Fate, Scene};

/// Counts of one image at a score threshold and IoU 0.5.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageScore {
    /// Index of the scene.
    pub scene: usize,
    /// True positives.
    pub hits: usize,
    /// False positives.
    pub false_positives: usize,
    /// False negatives.
    pub missed: usize,
}

impl ImageScore {
    /// False positives and false negatives.
    pub fn errors(&self) -> usize {
        self.false_positives + self.missed
    }

    /// F1; `None` if there are neither ground-truth boxes nor detections above the threshold.
    pub fn f1(&self) -> Option<f64> {
        let all = 2 * self.hits + self.errors();
        (all > 0).then(|| 2.0 * self.hits as f64 / all as f64)
    }
}

/// Counts of each scene for detections with at least `score`.
pub fn image_scores(scenes: &[Scene], score: f64) -> Vec<ImageScore> {
    let one = |(scene, s): (usize, &Scene)| {
        let kept = &s.found[..s.found.partition_point(|f| f.score >= score)];
        let hits = kept.iter().filter(|f| matches!(f.fate, Fate::Hit(_))).count();
        let false_positives = kept.iter().filter(|f| f.fate == Fate::False).count();
        ImageScore { scene, hits, false_positives, missed: s.truth.len() - hits }
    };
    scenes.iter().enumerate().map(one).collect()
}

/// Orders by ascending F1, undefined values first.
fn by_f1(a: &ImageScore, b: &ImageScore) -> Ordering {
    a.f1().unwrap_or(-1.0).total_cmp(&b.f1().unwrap_or(-1.0))
}

/// The `n` images with the lowest F1; of equal ones, those with more errors come first. Images
/// without errors are excluded.
pub fn worst(scores: &[ImageScore], n: usize) -> Vec<ImageScore> {
    let mut out: Vec<ImageScore> = scores.iter().filter(|s| s.errors() > 0).copied().collect();
    out.sort_by(|a, b| by_f1(a, b).then(b.errors().cmp(&a.errors())));
    out.truncate(n);
    out
}

/// The `n` images with the highest F1; of equal ones, those with more hits come first. Images
/// without hits are excluded.
pub fn best(scores: &[ImageScore], n: usize) -> Vec<ImageScore> {
    let mut out: Vec<ImageScore> = scores.iter().filter(|s| s.hits > 0).copied().collect();
    out.sort_by(|a, b| by_f1(b, a).then(b.hits.cmp(&a.hits)));
    out.truncate(n);
    out
}

/// The `n` images whose F1 differs most between two runs; of equal differences, those with the
/// larger difference in the number of errors come first. An undefined F1 counts as 1. `pairs` are
/// the indices of the same image in `a` and `b`.
pub fn most_different(
    a: &[ImageScore],
    b: &[ImageScore],
    pairs: &[(usize, usize)],
    n: usize,
) -> Vec<(ImageScore, ImageScore)> {
    let f1 = |s: &ImageScore| s.f1().unwrap_or(1.0);
    let mut out: Vec<(ImageScore, ImageScore)> = pairs.iter().map(|&(i, j)| (a[i], b[j])).collect();
    out.retain(|(a, b)| f1(a) != f1(b) || a.errors() != b.errors());
    let gap = |p: &(ImageScore, ImageScore)| (f1(&p.0) - f1(&p.1)).abs();
    out.sort_by(|p, q| {
        gap(q)
            .total_cmp(&gap(p))
            .then(q.0.errors().abs_diff(q.1.errors()).cmp(&p.0.errors().abs_diff(p.1.errors())))
    });
    out.truncate(n);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(scene: usize, hits: usize, false_positives: usize, missed: usize) -> ImageScore {
        ImageScore { scene, hits, false_positives, missed }
    }

    #[test]
    fn worst_and_best_images_by_f1() {
        let s = [
            image(0, 1, 0, 0),
            image(1, 3, 0, 0),
            image(2, 0, 1, 0),
            image(3, 0, 2, 3),
            image(4, 0, 0, 0),
            image(5, 1, 1, 1),
        ];
        assert_eq!((s[4].f1(), s[2].f1(), s[5].f1()), (None, Some(0.0), Some(0.5)));
        assert_eq!(worst(&s, 9).iter().map(|s| s.scene).collect::<Vec<_>>(), [3, 2, 5]);
        assert_eq!(best(&s, 2).iter().map(|s| s.scene).collect::<Vec<_>>(), [1, 0]);
    }

    #[test]
    fn pairs_by_difference_of_f1() {
        let (a, b) = (
            [image(0, 1, 0, 0), image(1, 1, 1, 0), image(2, 0, 0, 0)],
            [image(0, 1, 0, 0), image(1, 0, 1, 1), image(2, 0, 1, 0)],
        );
        let d = most_different(&a, &b, &[(0, 0), (1, 1), (2, 2)], 9);
        assert_eq!(d.iter().map(|p| p.0.scene).collect::<Vec<_>>(), [2, 1]);
    }
}
