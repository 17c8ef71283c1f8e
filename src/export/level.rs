//! One level of the pyramid: its cells, and sampling of its maps.

use super::graph::{Graph, int, text};
use super::proto::FLOAT;

/// A level of `h` x `w` cells.
#[derive(Debug)]
pub struct Level {
    /// Stride, pixels.
    pub stride: i64,
    /// h and w, if the size is fixed.
    size: Option<(i64, i64)>,
    /// The vector (h, w), if the size is not fixed; else empty.
    hw: String,
    /// h and w as numbers, f32.
    counts: [String; 2],
    /// Indices of the columns `[1, 1, 1, w]`.
    x: String,
    /// Indices of the rows `[1, 1, h, 1]`.
    y: String,
}

/// The vector of the height and width of `[N, C, h, w]`, i64.
pub fn size_of(g: &mut Graph, maps: &str) -> String {
    g.with("Shape", &[maps], vec![int("start", 2), int("end", 4)])
}

/// The element of a vector at `index`, without dimension.
pub fn element(g: &mut Graph, vector: &str, index: i64) -> String {
    let index = g.integer(index);
    g.with("Gather", &[vector, &index], vec![int("axis", 0)])
}

/// The integers from 0 to `n` exclusive, i64.
pub fn range(g: &mut Graph, n: &str) -> String {
    let [zero, one] = [0, 1].map(|v| g.integer(v));
    g.op("Range", &[&zero, n, &one])
}

impl Level {
    /// The level with the features `[N, F, h, w]`, whose size is `size` if it is fixed.
    pub fn new(g: &mut Graph, features: &str, stride: i64, size: Option<(i64, i64)>) -> Self {
        if let Some((h, w)) = size {
            let indices = |n: i64| (0..n).map(|v| v as f64).collect::<Vec<_>>();
            return Self {
                stride,
                size,
                hw: String::new(),
                counts: [h, w].map(|n| g.number(n as f64)),
                x: g.floats(&indices(w), &[1, 1, 1, w]),
                y: g.floats(&indices(h), &[1, 1, h, 1]),
            };
        }
        let hw = size_of(g, features);
        let [h, w] = [0, 1].map(|i| element(g, &hw, i));
        let mut axis = |n: &str, shape: &[i64]| {
            let indices = range(g, n);
            let indices = g.cast(&indices, FLOAT);
            g.reshape(&indices, shape)
        };
        let (x, y) = (axis(&w, &[1, 1, 1, -1]), axis(&h, &[1, 1, -1, 1]));
        let counts = [h, w].map(|n| g.cast(&n, FLOAT));
        Self { stride, size, hw, counts, x, y }
    }

    /// `x` with the shape `first`, h, w, `last`; at most one size in `first` is -1.
    pub fn reshape(&self, g: &mut Graph, x: &str, first: &[i64], last: &[i64]) -> String {
        if let Some((h, w)) = self.size {
            return g.reshape(x, &[first, &[h, w], last].concat());
        }
        let mut parts = vec![g.integers(first), self.hw.clone()];
        if !last.is_empty() {
            parts.push(g.integers(last));
        }
        let shape = g.concat(&parts, 0);
        g.op("Reshape", &[x, &shape])
    }

    /// Indices of the columns `[1, 1, 1, w]` and of the rows `[1, 1, h, 1]`, f32.
    pub fn cells(&self) -> (&str, &str) {
        (&self.x, &self.y)
    }

    /// Coordinates of the points for the sides x1, y1, x2, y2, `[1, 4, h, w]`, pixels. See
    /// [`crate::geometry::Grid::offset`] for `offset`.
    pub fn points(&self, g: &mut Graph, offset: f64) -> String {
        let mut axis = |cells: &str, along: [f64; 4]| {
            let offset = g.number(offset);
            let places = g.op("Add", &[cells, &offset]);
            let pixels = g.scaled(&places, self.stride as f64);
            let along = g.floats(&along, &[1, 4, 1, 1]);
            g.op("Mul", &[&pixels, &along])
        };
        let (x, y) = (axis(&self.x, ALONG_X), axis(&self.y, ALONG_Y));
        g.op("Add", &[&x, &y])
    }

    /// Samples each channel of `maps` `[N, K, h, w]` bilinearly at its own positions `x` and `y`
    /// `[N, K, h, w]`, in cells. Samples outside the map read zeros, corner by corner.
    pub fn sample(&self, g: &mut Graph, maps: &str, channels: i64, x: &str, y: &str) -> String {
        let mut places = vec![];
        for (cells, count) in [(x, &self.counts[1]), (y, &self.counts[0])] {
            let doubled = g.scaled(cells, 2.0);
            let one = g.number(1.0);
            let odd = g.op("Add", &[&doubled, &one]);
            let ratio = g.op("Div", &[&odd, count]);
            let normalised = g.op("Sub", &[&ratio, &one]);
            places.push(g.unsqueeze(&normalised, 4));
        }
        let places = g.concat(&places, 4);
        let places = self.reshape(g, &places, &[-1], &[2]);
        let images = self.reshape(g, maps, &[-1, 1], &[]);
        let how =
            [text("mode", "bilinear"), text("padding_mode", "zeros"), int("align_corners", 0)];
        let sampled = g.with("GridSample", &[&images, &places], how.into());
        self.reshape(g, &sampled, &[-1, channels], &[])
    }
}

/// 1 for the sides x1 and x2.
pub const ALONG_X: [f64; 4] = [1.0, 0.0, 1.0, 0.0];
/// 1 for the sides y1 and y2.
pub const ALONG_Y: [f64; 4] = [0.0, 1.0, 0.0, 1.0];

/// Direction from a point to the sides x1, y1, x2, y2, `[1, 4, 1, 1]`.
pub fn directions(g: &mut Graph) -> String {
    g.floats(&[-1.0, -1.0, 1.0, 1.0], &[1, 4, 1, 1])
}

/// Boxes `[N, 4, h, w]` of distances `[N, 4, h, w]` from `points` `[1, 4, h, w]`.
pub fn decode(g: &mut Graph, points: &str, distances: &str) -> String {
    let directions = directions(g);
    let signed = g.op("Mul", &[distances, &directions]);
    g.op("Add", &[points, &signed])
}

/// The inverse of [`decode`].
pub fn encode(g: &mut Graph, points: &str, boxes: &str) -> String {
    let directions = directions(g);
    let signed = g.op("Sub", &[boxes, points]);
    g.op("Mul", &[&signed, &directions])
}
