//! Which points lie in which boxes: found on the host with the batch, since it depends on boxes and grid alone.
//! The loss then runs over the flat list of pairs with a fixed number of tensor operations, whatever the number of boxes.

use tch::{Device, Kind as TensorKind, Tensor};

use super::{DwConfig, Formula, Prior};
use crate::boxes::STRIDES;

/// Pairs of one batch, as plain numbers (made by loader threads).
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Pairs {
    /// Boxes of the batch `[x1, y1, x2, y2]`, image after image.
    pub boxes: Vec<[f32; 4]>,
    /// Label of each box.
    pub labels: Vec<i64>,
    /// Pair -> point, `image * P + point`.
    pub point: Vec<i64>,
    /// Pair -> box; ascending.
    pub gt: Vec<i64>,
    /// Pair -> cell, where a cell is a (point, class) that some box of that class covers.
    pub cell: Vec<i64>,
    /// Cell -> `(image * P + point) * C + class`.
    pub cell_flat: Vec<i64>,
    /// Cell -> the pair of its box with the largest index: the one whose P_neg holds in the released formula.
    pub cell_last: Vec<i64>,
    /// Points of an image over all levels.
    pub points: i64,
}

/// [`Pairs`] on the device.
#[derive(Debug)]
pub struct PairTensors {
    /// `[G, 4]`
    pub boxes: Tensor,
    /// `[G]`
    pub labels: Tensor,
    /// `[N]`
    pub point: Tensor,
    /// `[N]`
    pub gt: Tensor,
    /// `[N]`
    pub cell: Tensor,
    /// `[U]`
    pub cell_flat: Tensor,
    /// `[U]`
    pub cell_last: Tensor,
}

impl Pairs {
    /// Copies to the device.
    pub fn tensors(&self, kind: TensorKind, device: Device) -> PairTensors {
        let ints = |v: &[i64]| Tensor::from_slice(v).to_device(device);
        let boxes = Tensor::from_slice(bytemuck::cast_slice::<[f32; 4], f32>(&self.boxes)).view([-1, 4]);
        PairTensors {
            boxes: boxes.to_kind(kind).to_device(device),
            labels: ints(&self.labels),
            point: ints(&self.point),
            gt: ints(&self.gt),
            cell: ints(&self.cell),
            cell_flat: ints(&self.cell_flat),
            cell_last: ints(&self.cell_last),
        }
    }
}

/// Collects the pairs of a batch, image by image.
pub struct PairsBuilder<'a> {
    sizes: &'a [(i64, i64)],
    classes: i64,
    rule: &'a DwConfig,
    out: Pairs,
    images: i64,
    /// (point, class) -> cell of the current image.
    cells: std::collections::HashMap<(i64, i64), usize>,
}

impl<'a> PairsBuilder<'a> {
    /// For level sizes `(h, w)` and a number of classes.
    pub fn new(sizes: &'a [(i64, i64)], classes: i64, rule: &'a DwConfig) -> Self {
        let points = sizes.iter().map(|(h, w)| h * w).sum();
        Self { sizes, classes, rule, out: Pairs { points, ..Pairs::default() }, images: 0, cells: std::collections::HashMap::new() }
    }

    /// Adds the next image's boxes.
    pub fn image(&mut self, boxes: &[[f32; 4]], labels: &[i64]) {
        self.cells.clear();
        for (b, &label) in boxes.iter().zip(labels) {
            let gt = self.out.boxes.len() as i64;
            self.out.boxes.push(*b);
            self.out.labels.push(label);
            let mut base = 0;
            for (&(h, w), &stride) in self.sizes.iter().zip(&STRIDES) {
                for p in self.level_points(b, h, w, stride) {
                    self.pair(base + p, gt, label);
                }
                base += h * w;
            }
        }
        self.images += 1;
    }

    /// Points of one level that belong to the box's bag, row by row.
    fn level_points(&self, &[x1, y1, x2, y2]: &[f32; 4], h: i64, w: i64, stride: i64) -> Vec<i64> {
        let s = stride as f32;
        // Strictly inside, in f32 like the reference; a generous range first, then the exact test.
        let range = |low: f32, high: f32, n: i64| {
            let first = ((low / s - 1.5).floor() as i64).clamp(0, n);
            let last = ((high / s + 1.5).ceil() as i64).clamp(0, n);
            first..last
        };
        let center = |i: i64| (i as f32 + 0.5) * s;
        let mut found = vec![];
        for row in range(y1, y2, h) {
            let y = center(row);
            if y - y1 <= 0.0 || y2 - y <= 0.0 {
                continue;
            }
            for col in range(x1, x2, w) {
                let x = center(col);
                if x - x1 > 0.0 && x2 - x > 0.0 {
                    found.push((row * w + col, x, y));
                }
            }
        }
        if self.rule.formula == Formula::Paper && self.rule.prior != Prior::Soft {
            let (cx, cy) = (f64::from(x1 + x2) / 2.0, f64::from(y1 + y2) / 2.0);
            let r = |x: f32, y: f32| (f64::from(x) - cx).hypot(f64::from(y) - cy) / stride as f64;
            if self.rule.prior == Prior::Threshold {
                found.retain(|&(_, x, y)| r(x, y) <= self.rule.prior_value);
            } else {
                // Stable: the lower point index first on ties.
                found.sort_by(|a, b| r(a.1, a.2).total_cmp(&r(b.1, b.2)));
                found.truncate(self.rule.prior_value as usize);
                found.sort_by_key(|p| p.0);
            }
        }
        found.into_iter().map(|p| p.0).collect()
    }

    fn pair(&mut self, point: i64, gt: i64, label: i64) {
        let pair = self.out.point.len() as i64;
        let flat_point = self.images * self.out.points + point;
        let next = self.out.cell_flat.len();
        let cell = *self.cells.entry((point, label)).or_insert(next);
        if cell == next {
            self.out.cell_flat.push(flat_point * self.classes + label);
            self.out.cell_last.push(pair);
        } else {
            self.out.cell_last[cell] = pair;
        }
        self.out.point.push(flat_point);
        self.out.gt.push(gt);
        self.out.cell.push(cell as i64);
    }

    /// The whole batch.
    pub fn finish(self) -> Pairs {
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boxes::level_sizes;

    #[test]
    fn inside_is_strict_and_last_box_of_a_class_wins() {
        let (sizes, rule) = (level_sizes(32, 32), DwConfig::default());
        let mut b = PairsBuilder::new(&sizes, 3, &rule);
        // Points of stride 8 are at 4, 12, 20, 28: a box from 4 to 20 holds 12 only.
        b.image(&[[4., 4., 20., 20.], [11., 11., 13., 13.], [11., 11., 13., 13.]], &[1, 1, 2]);
        b.image(&[], &[]);
        b.image(&[[0., 0., 9., 9.]], &[0]);
        let p = b.finish();
        // 16 + 4 + 1 + 1 + 1 points; the first box also holds (8, 8) of stride 16 and (16, 16) of stride 32.
        assert_eq!(p.points, 23);
        assert_eq!(p.point, [5, 16, 20, 5, 5, 46, 62]);
        assert_eq!(p.gt, [0, 0, 0, 1, 2, 3, 3]);
        assert_eq!(p.cell_flat, [16, 49, 61, 17, 138, 186]);
        assert_eq!(p.cell_last, [3, 1, 2, 4, 5, 6], "the second box owns (point 5, class 1)");
    }
}
