//! (point, box) pairs: each box with the points inside it. They depend on boxes and grid alone, so
//! the loader's threads find them on the host. The loss then runs over the flat list of pairs with
//! a fixed number of tensor operations, whatever the number of boxes.
//!
//! Shapes: B images, P points over all levels, C classes, G boxes, N pairs, U covered logits. A
//! logit is an entry (point, class) of the class logits `[B, P, C]`; it is covered if the point
//! lies in the bag of a box of that class.

use tch::Tensor;

use super::ImageBoxes;
use crate::geometry::{Grid, STRIDES};

/// Pairs of one batch on the host.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Pairs {
    /// Boxes `[x1, y1, x2, y2]`, image after image, `[G, 4]`, pixels.
    pub boxes: Vec<[f32; 4]>,
    /// Class of each box, `[G]`.
    pub labels: Vec<i64>,
    /// Image of each box, `0..B`, `[G]`.
    pub image: Vec<i64>,
    /// Point of each pair, `image * P + point`, `[N]`.
    pub point: Vec<i64>,
    /// Box of each pair, `0..G`, ascending, `[N]`.
    pub gt: Vec<i64>,
    /// Distances (l, t, r, b) from the point of each pair to the sides of its box, `[4, N]`,
    /// pixels; all positive.
    pub target: [Vec<f32>; 4],
    /// Stride of the level of each pair's point, `[N]`, pixels.
    pub stride: Vec<f32>,
    /// Covered logit of each pair, `0..U`, `[N]`.
    pub logit: Vec<i64>,
    /// Position of each covered logit in the class logits, `(image * P + point) * C + class`,
    /// `[U]`.
    pub logit_index: Vec<i64>,
    /// Last pair of each covered logit, `0..N`, `[U]`: the pair of the box with the largest index.
    /// The released formula takes P_neg from it.
    pub logit_last_pair: Vec<i64>,
    /// Number of points of one image over all levels, P.
    pub num_points: i64,
}

/// [`Pairs`] as tensors.
#[derive(Debug)]
pub struct PairTensors {
    /// Boxes `[G, 4]`, pixels.
    pub boxes: Tensor,
    /// Class of each box `[G]`.
    pub labels: Tensor,
    /// Image of each box `[G]`.
    pub image: Tensor,
    /// Point of each pair `[N]`.
    pub point: Tensor,
    /// Box of each pair `[N]`.
    pub gt: Tensor,
    /// Distances (l, t, r, b) of each pair `[4, N]`, pixels.
    pub target: Tensor,
    /// Stride of each pair `[N]`, pixels.
    pub stride: Tensor,
    /// Covered logit of each pair `[N]`.
    pub logit: Tensor,
    /// Position of each covered logit in the class logits `[U]`.
    pub logit_index: Tensor,
    /// Last pair of each covered logit `[U]`.
    pub logit_last_pair: Tensor,
}

impl PairTensors {
    /// Applies `f` to every tensor.
    pub(super) fn map<E>(
        &self,
        f: impl Fn(&Tensor) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<Self, E> {
        Ok(Self {
            boxes: f(&self.boxes)?,
            labels: f(&self.labels)?,
            image: f(&self.image)?,
            point: f(&self.point)?,
            gt: f(&self.gt)?,
            target: f(&self.target)?,
            stride: f(&self.stride)?,
            logit: f(&self.logit)?,
            logit_index: f(&self.logit_index)?,
            logit_last_pair: f(&self.logit_last_pair)?,
        })
    }

    /// Offset (x, y) of each pair's point from the centre of its box, `[2, N]`, in strides: half
    /// the difference of the distances to opposite sides.
    pub fn center_offset(&self) -> Tensor {
        (self.target.narrow(0, 0, 2) - self.target.narrow(0, 2, 2)) / (&self.stride * 2.0)
    }

    /// Sum of `values_n` `[N]` over the pairs of each box, repeated for each of these pairs, `[N]`.
    pub fn sum_per_box(&self, values_n: &Tensor) -> Tensor {
        let sums_g = Tensor::zeros(self.labels.size(), (values_n.kind(), values_n.device()));
        sums_g.index_add(0, &self.gt, values_n).index_select(0, &self.gt)
    }

    /// Minimum of `values_n` `[N]` over the pairs of each box, repeated for each of these pairs,
    /// `[N]`.
    pub fn min_per_box(&self, values_n: &Tensor) -> Tensor {
        let options = (values_n.kind(), values_n.device());
        let start_g = Tensor::full(self.labels.size(), f64::INFINITY, options);
        start_g
            .internal_scatter_reduce(0, &self.gt, values_n, "amin", true)
            .index_select(0, &self.gt)
    }

    /// Maximum of `values_n` `[N]` over the pairs of each box, repeated for each of these pairs,
    /// `[N]`.
    pub fn max_per_box(&self, values_n: &Tensor) -> Tensor {
        -self.min_per_box(&-values_n)
    }

    /// Minimum of `values_n` `[N]` over the pairs of each covered logit, `[U]`.
    pub fn min_per_logit(&self, values_n: &Tensor) -> Tensor {
        let options = (values_n.kind(), values_n.device());
        let start_u = Tensor::full(self.logit_index.size(), f64::INFINITY, options);
        start_u.internal_scatter_reduce(0, &self.logit, values_n, "amin", true)
    }
}

/// Selects rows of a tensor `[R, C]` by `index_n` `[N]` and transposes them: `[C, N]`. Uses one
/// flat `index_select`, whose gradient is one flat addition; the gradient of selecting whole rows
/// adds row by row, which is far slower.
pub fn columns(rows: &Tensor, index_n: &Tensor) -> Tensor {
    let (num_rows, num_columns) = (rows.size()[0], rows.size()[1]);
    let offsets = Tensor::arange(num_columns, (index_n.kind(), index_n.device())) * num_rows;
    let index = (offsets.unsqueeze(1) + index_n.unsqueeze(0)).view([-1]);
    rows.tr().reshape([-1]).index_select(0, &index).view([num_columns, -1])
}

/// A point of one level inside a box: its index within the level, and its distances (l, t, r, b)
/// from the box's sides, pixels.
pub type InsidePoint = (i64, [f32; 4]);

/// Selects the bag of a box: removes the other points from the inside points of one level, given
/// with the level's stride in pixels.
pub type BagFilter<'a> = &'a dyn Fn(&mut Vec<InsidePoint>, i64);

impl Pairs {
    /// Finds the pairs of a batch: each box with the points strictly inside it that `filter` keeps.
    pub fn new(grid: &Grid, classes: i64, images: &[ImageBoxes], filter: BagFilter) -> Self {
        let out = Self { num_points: grid.num_points(), ..Self::default() };
        let mut builder = Builder {
            grid,
            classes,
            filter,
            out,
            num_images: 0,
            logits: vec![],
            image_classes: vec![],
        };
        for image in images {
            builder.add_image(&image.boxes, &image.labels);
        }
        builder.out
    }

    /// Copies to tensors in host memory, with floats in f32.
    pub fn tensors(&self) -> PairTensors {
        PairTensors {
            boxes: Tensor::from_slice(self.boxes.as_flattened()).view([-1, 4]),
            labels: Tensor::from_slice(&self.labels),
            image: Tensor::from_slice(&self.image),
            point: Tensor::from_slice(&self.point),
            gt: Tensor::from_slice(&self.gt),
            target: Tensor::from_slice(&self.target.concat()).view([4, -1]),
            stride: Tensor::from_slice(&self.stride),
            logit: Tensor::from_slice(&self.logit),
            logit_index: Tensor::from_slice(&self.logit_index),
            logit_last_pair: Tensor::from_slice(&self.logit_last_pair),
        }
    }
}

/// Collects the pairs of a batch, image by image.
struct Builder<'a> {
    grid: &'a Grid,
    /// Number of classes, C.
    classes: i64,
    filter: BagFilter<'a>,
    out: Pairs,
    /// Number of images added so far.
    num_images: i64,
    /// Covered logit of each point of the current image, P entries for each class in
    /// `image_classes`; `NO_LOGIT` for a logit that is not covered yet.
    logits: Vec<u32>,
    /// Classes of the current image, in the order of their first box.
    image_classes: Vec<i64>,
}

const NO_LOGIT: u32 = u32::MAX;

impl Builder<'_> {
    /// Adds the boxes of the next image.
    fn add_image(&mut self, boxes: &[[f32; 4]], labels: &[i64]) {
        self.logits.clear();
        self.image_classes.clear();
        for (b, &label) in boxes.iter().zip(labels) {
            let gt = self.out.labels.len() as i64;
            let first_logit = self.first_logit(label);
            self.out.boxes.push(*b);
            self.out.labels.push(label);
            self.out.image.push(self.num_images);
            let mut first_point = 0;
            for (&(h, w), &stride) in self.grid.sizes.iter().zip(&STRIDES) {
                for (p, ltrb) in self.bag_of_level(b, h, w, stride) {
                    self.add_pair(first_point + p, gt, label, first_logit);
                    for (side, distance) in self.out.target.iter_mut().zip(ltrb) {
                        side.push(distance);
                    }
                    self.out.stride.push(stride as f32);
                }
                first_point += h * w;
            }
        }
        self.num_images += 1;
    }

    /// Points of one level that belong to the bag of a box, row by row.
    fn bag_of_level(
        &self,
        &[x1, y1, x2, y2]: &[f32; 4],
        h: i64,
        w: i64,
        stride: i64,
    ) -> Vec<InsidePoint> {
        let s = stride as f32;
        // A range of cells that is certain to contain all inside points. The exact test follows, in
        // f32 as in the reference.
        let range = |low: f32, high: f32, n: i64| {
            let first = ((low / s - 1.5).floor() as i64).clamp(0, n);
            let last = ((high / s + 1.5).ceil() as i64).clamp(0, n);
            first..last
        };
        let offset = self.grid.offset as f32;
        let at = |i: i64| (i as f32 + offset) * s;
        let mut found = vec![];
        for row in range(y1, y2, h) {
            let y = at(row);
            if y - y1 <= 0.0 || y2 - y <= 0.0 {
                continue;
            }
            for col in range(x1, x2, w) {
                let x = at(col);
                if x - x1 > 0.0 && x2 - x > 0.0 {
                    found.push((row * w + col, [x - x1, y - y1, x2 - x, y2 - y]));
                }
            }
        }
        (self.filter)(&mut found, stride);
        found
    }

    /// Index in `logits` of the first point's entry for a class; adds the class if it is new.
    fn first_logit(&mut self, label: i64) -> usize {
        let num_points = self.out.num_points as usize;
        let known = self.image_classes.iter().position(|&class| class == label);
        let index = known.unwrap_or_else(|| {
            self.image_classes.push(label);
            self.logits.resize(self.image_classes.len() * num_points, NO_LOGIT);
            self.image_classes.len() - 1
        });
        index * num_points
    }

    /// Adds a pair. `point` is the index within the image, `first_logit` that of the box's class.
    fn add_pair(&mut self, point: i64, gt: i64, label: i64, first_logit: usize) {
        let pair = self.out.point.len() as i64;
        let batch_point = self.num_images * self.out.num_points + point;
        let entry = &mut self.logits[first_logit + point as usize];
        if *entry == NO_LOGIT {
            *entry = self.out.logit_index.len() as u32;
            self.out.logit_index.push(batch_point * self.classes + label);
            self.out.logit_last_pair.push(pair);
        } else {
            self.out.logit_last_pair[*entry as usize] = pair;
        }
        self.out.logit.push(*entry as i64);
        self.out.point.push(batch_point);
        self.out.gt.push(gt);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::level_sizes;

    #[test]
    fn points_are_strictly_inside_and_logits_refer_to_the_last_box() {
        let image = |boxes: &[[f32; 4]], labels: &[i64]| ImageBoxes {
            boxes: boxes.to_vec(),
            labels: labels.to_vec(),
            padded: None,
        };
        // Points of stride 8 are at 4, 12, 20, 28: only 12 is strictly inside a box from 4 to 20.
        let first =
            image(&[[4., 4., 20., 20.], [11., 11., 13., 13.], [11., 11., 13., 13.]], &[1, 1, 2]);
        let images = [first, image(&[], &[]), image(&[[0., 0., 9., 9.]], &[0])];
        let p = Pairs::new(&Grid::centers(&level_sizes(32, 32)), 3, &images, &|_, _| ());
        // 16 + 4 + 1 + 1 + 1 points. The first box also contains (8, 8) of stride 16 and (16, 16)
        // of stride 32.
        assert_eq!(p.num_points, 23);
        assert_eq!(p.point, [5, 16, 20, 5, 5, 46, 62]);
        assert_eq!(p.gt, [0, 0, 0, 1, 2, 3, 3]);
        assert_eq!(p.target.each_ref().map(|side| side[1]), [4.0, 4.0, 12.0, 12.0]);
        assert_eq!(p.stride, [8.0, 16.0, 32.0, 8.0, 8.0, 8.0, 16.0]);
        assert_eq!(p.logit_index, [16, 49, 61, 17, 138, 186]);
        assert_eq!(
            p.logit_last_pair,
            [3, 1, 2, 4, 5, 6],
            "box 1 is the last at (point 5, class 1)"
        );
    }
}
