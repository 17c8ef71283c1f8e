//! Which points lie in which boxes: found on the host with the batch, since it depends on boxes and grid alone.
//! The loss then runs over the flat list of pairs with a fixed number of tensor operations, whatever the number of boxes.

use tch::{Device, Kind as TensorKind, Tensor};

use super::ImageBoxes;
use crate::geometry::{Grid, STRIDES};

/// Pairs of one batch, as plain numbers (made by loader threads).
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Pairs {
    /// Label of each box, image after image.
    pub labels: Vec<i64>,
    /// Pair -> point, `image * P + point`.
    pub point: Vec<i64>,
    /// Pair -> box; ascending.
    pub gt: Vec<i64>,
    /// Pair -> distances (l, t, r, b) of the point from the box's sides, pixels; all positive.
    pub target: [Vec<f32>; 4],
    /// Pair -> stride of the point's level, pixels.
    pub stride: Vec<f32>,
    /// Pair -> cell, where a cell is a (point, class) that some box of that class covers.
    pub cell: Vec<i64>,
    /// Cell -> `(image * P + point) * C + class`.
    pub cell_flat: Vec<i64>,
    /// Cell -> the pair of its box with the largest index: the one whose P_neg holds in the released formula.
    pub cell_last: Vec<i64>,
    /// Points of an image over all levels.
    pub points: i64,
}

/// [`Pairs`] as tensors: made by the loader's threads, moved to the device with the batch.
#[derive(Debug)]
pub struct PairTensors {
    /// `[G]`
    pub labels: Tensor,
    /// `[N]`
    pub point: Tensor,
    /// `[N]`
    pub gt: Tensor,
    /// `[4, N]`, pixels
    pub target: Tensor,
    /// `[N]`, pixels
    pub stride: Tensor,
    /// `[N]`
    pub cell: Tensor,
    /// `[U]`
    pub cell_flat: Tensor,
    /// `[U]`
    pub cell_last: Tensor,
}

impl Pairs {
    /// As tensors in host memory.
    pub fn tensors(&self) -> PairTensors {
        PairTensors {
            labels: Tensor::from_slice(&self.labels),
            point: Tensor::from_slice(&self.point),
            gt: Tensor::from_slice(&self.gt),
            target: Tensor::from_slice(&self.target.concat()).view([4, -1]),
            stride: Tensor::from_slice(&self.stride),
            cell: Tensor::from_slice(&self.cell),
            cell_flat: Tensor::from_slice(&self.cell_flat),
            cell_last: Tensor::from_slice(&self.cell_last),
        }
    }
}

impl PairTensors {
    /// On `device`, with floats of `kind`; shares what is there already.
    #[must_use]
    pub fn to(&self, kind: TensorKind, device: Device) -> Self {
        let ints = |t: &Tensor| t.to_device(device);
        let floats = |t: &Tensor| t.to_device(device).to_kind(kind);
        Self {
            labels: ints(&self.labels),
            point: ints(&self.point),
            gt: ints(&self.gt),
            target: floats(&self.target),
            stride: floats(&self.stride),
            cell: ints(&self.cell),
            cell_flat: ints(&self.cell_flat),
            cell_last: ints(&self.cell_last),
        }
    }
}

/// A point of a level with its distances (l, t, r, b) from a box's sides, pixels.
pub type Inside = (i64, [f32; 4]);

/// Which points inside a box belong to its bag: removes the others from the points of one level of the given stride.
pub type Keep<'a> = &'a dyn Fn(&mut Vec<Inside>, i64);

/// Collects the pairs of a batch, image by image.
struct Builder<'a> {
    sizes: &'a [(i64, i64)],
    classes: i64,
    keep: Keep<'a>,
    out: Pairs,
    images: i64,
    /// Cell of each point of the current image, one grid for each class that it holds; `NO_CELL` where none is yet.
    cells: Vec<u32>,
    /// Class of each grid.
    grids: Vec<i64>,
}

const NO_CELL: u32 = u32::MAX;

impl Pairs {
    /// The pairs of a batch: each box with the points that lie strictly inside it and that `keep` leaves.
    ///
    /// # Panics
    /// Points that are not at the centres of their cells.
    pub fn new(grid: &Grid, classes: i64, images: &[ImageBoxes], keep: Keep) -> Self {
        assert_eq!(grid.offset, 0.5, "pairs are found at the centres of cells");
        let out = Self { points: grid.num_points(), ..Self::default() };
        let mut builder = Builder {
            sizes: &grid.sizes,
            classes,
            keep,
            out,
            images: 0,
            cells: vec![],
            grids: vec![],
        };
        for image in images {
            builder.image(&image.boxes, &image.labels);
        }
        builder.out
    }
}

impl Builder<'_> {
    /// Adds the next image's boxes.
    fn image(&mut self, boxes: &[[f32; 4]], labels: &[i64]) {
        self.cells.clear();
        self.grids.clear();
        for (b, &label) in boxes.iter().zip(labels) {
            let gt = self.out.labels.len() as i64;
            let grid = self.grid(label);
            self.out.labels.push(label);
            let mut base = 0;
            for (&(h, w), &stride) in self.sizes.iter().zip(&STRIDES) {
                for (p, target) in self.level_points(b, h, w, stride) {
                    self.pair(base + p, gt, label, grid);
                    for (side, distance) in self.out.target.iter_mut().zip(target) {
                        side.push(distance);
                    }
                    self.out.stride.push(stride as f32);
                }
                base += h * w;
            }
        }
        self.images += 1;
    }

    /// Points of one level that belong to the box's bag, row by row, with their distances from the box's sides.
    fn level_points(
        &self,
        &[x1, y1, x2, y2]: &[f32; 4],
        h: i64,
        w: i64,
        stride: i64,
    ) -> Vec<(i64, [f32; 4])> {
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
                    found.push((row * w + col, [x - x1, y - y1, x2 - x, y2 - y]));
                }
            }
        }
        (self.keep)(&mut found, stride);
        found
    }

    /// Where the class's cells begin in `cells`.
    fn grid(&mut self, label: i64) -> usize {
        let points = self.out.points as usize;
        let found = self.grids.iter().position(|&g| g == label);
        let grid = found.unwrap_or_else(|| {
            self.grids.push(label);
            self.cells.resize(self.grids.len() * points, NO_CELL);
            self.grids.len() - 1
        });
        grid * points
    }

    fn pair(&mut self, point: i64, gt: i64, label: i64, grid: usize) {
        let pair = self.out.point.len() as i64;
        let flat_point = self.images * self.out.points + point;
        let known = &mut self.cells[grid + point as usize];
        let cell = if *known == NO_CELL {
            *known = self.out.cell_flat.len() as u32;
            self.out.cell_flat.push(flat_point * self.classes + label);
            self.out.cell_last.push(pair);
            *known
        } else {
            self.out.cell_last[*known as usize] = pair;
            *known
        };
        self.out.point.push(flat_point);
        self.out.gt.push(gt);
        self.out.cell.push(cell as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::level_sizes;

    #[test]
    fn inside_is_strict_and_last_box_of_a_class_wins() {
        let image = |boxes: &[[f32; 4]], labels: &[i64]| ImageBoxes {
            boxes: boxes.to_vec(),
            labels: labels.to_vec(),
        };
        // Points of stride 8 are at 4, 12, 20, 28: a box from 4 to 20 holds 12 only.
        let first =
            image(&[[4., 4., 20., 20.], [11., 11., 13., 13.], [11., 11., 13., 13.]], &[1, 1, 2]);
        let images = [first, image(&[], &[]), image(&[[0., 0., 9., 9.]], &[0])];
        let p = Pairs::new(&Grid::centers(&level_sizes(32, 32)), 3, &images, &|_, _| ());
        // 16 + 4 + 1 + 1 + 1 points; the first box also holds (8, 8) of stride 16 and (16, 16) of stride 32.
        assert_eq!(p.points, 23);
        assert_eq!(p.point, [5, 16, 20, 5, 5, 46, 62]);
        assert_eq!(p.gt, [0, 0, 0, 1, 2, 3, 3]);
        assert_eq!(p.target.each_ref().map(|side| side[1]), [4.0, 4.0, 12.0, 12.0]);
        assert_eq!(p.stride, [8.0, 16.0, 32.0, 8.0, 8.0, 8.0, 16.0]);
        assert_eq!(p.cell_flat, [16, 49, 61, 17, 138, 186]);
        assert_eq!(p.cell_last, [3, 1, 2, 4, 5, 6], "the second box owns (point 5, class 1)");
    }
}
