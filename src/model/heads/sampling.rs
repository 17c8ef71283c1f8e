//! Bilinear sampling of maps of boxes, each channel at its own positions.

use tch::Tensor;

/// Samples the channels of `maps` `[B, K, h, w]`, each at its own positions `x` and `y`
/// `[B, K, h, w]` in cells. Samples outside the map read zeros, corner by corner.
pub fn sample(maps: &Tensor, x: Tensor, y: Tensor) -> Tensor {
    let size = maps.size();
    let (b, k, h, w) = (size[0], size[1], size[2], size[3]);
    // Cell indices to grid_sample's normalised coordinates with align_corners = false.
    let normalise = |cells: Tensor, n: i64| (cells * 2.0 + 1.0) / n as f64 - 1.0;
    let places = Tensor::stack(&[normalise(x, w), normalise(y, h)], -1);
    // Each channel is a one-channel image of its own.
    maps.contiguous()
        .view([b * k, 1, h, w])
        .grid_sampler_2d(&places.view([b * k, h, w, 2]), 0, 0, false)
        .view([b, k, h, w])
}

/// Cell indices of a map of `h` x `w` cells along x `[1, 1, 1, w]` and along y `[1, 1, h, 1]`, with
/// the kind and device of `like`.
pub fn cells(h: i64, w: i64, like: &Tensor) -> (Tensor, Tensor) {
    let options = (like.kind(), like.device());
    (Tensor::arange(w, options).view([1, 1, 1, w]), Tensor::arange(h, options).view([1, 1, h, 1]))
}
