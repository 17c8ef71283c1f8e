// Passes over channels-last tensors [B, C, H, W] of f32 or bf16 on a CPU, on libtorch's threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <vector>

namespace dw {

// The positions of a tensor, in chunks that belong to one image each. Sums of chunks are added in
// f64 and in the same order for any number of threads.
struct Chunks {
  static constexpr int64_t SIZE = 64;
  // Minimum number of elements per thread.
  static constexpr int64_t GRAIN = 1 << 15;

  int64_t images, positions, channels, per_image;

  explicit Chunks(const at::Tensor &x)
      : images(x.size(0)),
        positions(x.size(2) * x.size(3)),
        channels(x.size(1)),
        per_image((positions + SIZE - 1) / SIZE) {}

  int64_t count() const { return images * per_image; }

  // Calls `f(chunk, image, offset, positions)` for each chunk: its index, the index of its image,
  // the offset of its first element, and its number of positions.
  template <typename F>
  void for_each(const F &f) const {
    const int64_t grain = std::max<int64_t>(GRAIN / (SIZE * channels), 1);
    at::parallel_for(0, count(), grain, [&](int64_t first, int64_t last) {
      for (int64_t chunk = first; chunk < last; chunk++) {
        const int64_t image = chunk / per_image, begin = chunk % per_image * SIZE;
        f(chunk, image, (image * positions + begin) * channels,
          std::min(SIZE, positions - begin));
      }
    });
  }

  // Adds the sums of the chunks, n numbers each, to the sums of each image [B, n].
  std::vector<double> add(const std::vector<float> &partial, int64_t n) const {
    std::vector<double> sums(images * n);
    for (int64_t chunk = 0; chunk < count(); chunk++)
      for (int64_t i = 0; i < n; i++) sums[chunk / per_image * n + i] += partial[chunk * n + i];
    return sums;
  }
};

}  // namespace dw
