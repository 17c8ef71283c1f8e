// L2 norm of all numbers of a tensor.

#include <ATen/Parallel.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/scalar_tensor.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "common.h"
#include "vectorised.h"

namespace {

using at::Tensor;

// Number of elements in a partial sum.
constexpr int64_t CHUNK = 1 << 14;

// The sum of squares, in several accumulators so that the compiler can use vector instructions.
DW_FOR_EACH_CPU
double sum_of_squares(const float *x, int64_t count) {
  constexpr int64_t LANES = 16;
  double sums[LANES] = {};
  const int64_t even = count - count % LANES;
  for (int64_t i = 0; i < even; i += LANES)
    for (int64_t lane = 0; lane < LANES; lane++) {
      const double v = x[i + lane];
      sums[lane] += v * v;
    }
  for (int64_t i = even; i < count; i++) sums[i - even] += static_cast<double>(x[i]) * x[i];
  double sum = 0;
  for (const double s : sums) sum += s;
  return sum;
}

// Sums in f64: libtorch sums f32 values on a CPU in f32, one after the other, and its norm of 32
// million normally distributed values is 0.2 % too low (libtorch 2.11). Partial sums are added in
// the same order for any number of threads.
Tensor on_cpu(const Tensor &x) {
  const int64_t count = x.numel(), chunks = (count + CHUNK - 1) / CHUNK;
  std::vector<double> sums(chunks);
  const auto *numbers = x.const_data_ptr<float>();
  at::parallel_for(0, chunks, 4, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; c++)
      sums[c] = sum_of_squares(numbers + c * CHUNK, std::min(CHUNK, count - c * CHUNK));
  });
  const double sum = std::accumulate(sums.begin(), sums.end(), 0.0);
  return at::scalar_tensor(std::sqrt(sum), x.options().dtype(at::kDouble));
}

}  // namespace

extern "C" {

// L2 norm of a contiguous tensor, a new scalar f64 on its device. Null on failure.
Tensor *dw_norm(const Tensor *x) {
  return dw::guarded(static_cast<Tensor *>(nullptr), [&] {
    const bool is_own = x->is_cpu() && x->scalar_type() == at::kFloat && x->is_contiguous();
    // Other tensors are summed in their own kind: libtorch would first convert all values.
    return new Tensor(is_own ? on_cpu(*x) : at::linalg_vector_norm(*x, 2).to(at::kDouble));
  });
}
}
