//! How well each image went, to find the ones worth looking at.

use std::cmp::Ordering;

use super::scene::{Fate, Scene};

/// One image at a score threshold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageScore {
    /// Place in the scenes.
    pub scene: usize,
    /// Hits.
    pub hits: usize,
    /// False positives.
    pub false_alarms: usize,
    /// Ground truth not found.
    pub missed: usize,
}

impl ImageScore {
    /// Errors.
    pub fn errors(&self) -> usize {
        self.false_alarms + self.missed
    }

    /// F1 of the image; `None` where there is nothing to find and nothing was found.
    ///
    /// Without ground truth, any detection above the threshold makes it 0.
    pub fn f1(&self) -> Option<f64> {
        let all = 2 * self.hits + self.errors();
        (all > 0).then(|| 2.0 * self.hits as f64 / all as f64)
    }
}

/// Scores of the images, in the order of the scenes, for detections with at least `score`.
pub fn image_scores(scenes: &[Scene], score: f64) -> Vec<ImageScore> {
    let one = |(scene, s): (usize, &Scene)| {
        let kept = &s.found[..s.found.partition_point(|f| f.score >= score)];
        let hits = kept.iter().filter(|f| matches!(f.fate, Fate::Hit(_))).count();
        let false_alarms = kept.iter().filter(|f| f.fate == Fate::False).count();
        ImageScore { scene, hits, false_alarms, missed: s.truth.len() - hits }
    };
    scenes.iter().enumerate().map(one).collect()
}

fn by_f1(a: &ImageScore, b: &ImageScore) -> Ordering {
    a.f1().unwrap_or(-1.0).total_cmp(&b.f1().unwrap_or(-1.0))
}

/// The worst: lowest F1, of equal ones those with more errors; images without errors are left out.
pub fn worst(scores: &[ImageScore], n: usize) -> Vec<ImageScore> {
    let mut out: Vec<ImageScore> = scores.iter().filter(|s| s.errors() > 0).copied().collect();
    out.sort_by(|a, b| by_f1(a, b).then(b.errors().cmp(&a.errors())));
    out.truncate(n);
    out
}

/// The best: highest F1, of equal ones those with more hits; images without hits are left out.
pub fn best(scores: &[ImageScore], n: usize) -> Vec<ImageScore> {
    let mut out: Vec<ImageScore> = scores.iter().filter(|s| s.hits > 0).copied().collect();
    out.sort_by(|a, b| by_f1(b, a).then(b.hits.cmp(&a.hits)));
    out.truncate(n);
    out
}

/// Pairs of the same image in two runs whose F1 differ most, of equal ones those whose errors do.
///
/// An image that is right to be empty counts as F1 of 1.
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

    fn image(scene: usize, hits: usize, false_alarms: usize, missed: usize) -> ImageScore {
        ImageScore { scene, hits, false_alarms, missed }
    }

    #[test]
    fn order_and_empty_images() {
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
    fn differences() {
        let (a, b) = (
            [image(0, 1, 0, 0), image(1, 1, 1, 0), image(2, 0, 0, 0)],
            [image(0, 1, 0, 0), image(1, 0, 1, 1), image(2, 0, 1, 0)],
        );
        let d = most_different(&a, &b, &[(0, 0), (1, 1), (2, 2)], 9);
        assert_eq!(d.iter().map(|p| p.0.scene).collect::<Vec<_>>(), [2, 1]);
    }
}
