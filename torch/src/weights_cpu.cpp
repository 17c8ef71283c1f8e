// A convolution's weight on a CPU: its copy for the convolution, and the gradient of that copy,
// each in one pass over the weight, where libtorch's operations take several.
//
// Weights [O, C / G, k, k] in channels-last memory are O rows.

#include "weights_cpu.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "common.h"
#include "vectorised.h"

namespace {

using at::Tensor;


// Minimum number of elements per thread.
constexpr int64_t GRAIN = 1 << 15;

// Calls `f(row, offset)` on libtorch's threads, with the index of each row of `weight` and the
// offset of its first element.
template <typename F>
void for_rows(const Tensor &weight, int64_t columns, const F &f) {
  const int64_t grain = std::max<int64_t>(GRAIN / columns, 1);
  at::parallel_for(0, weight.size(0), grain, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) f(row, row * columns);
  });
}

template <typename W, typename K>
DW_FOR_EACH_CPU
void scale_row(const W *weight, W scale, K *out, int64_t count) {
  for (int64_t i = 0; i < count; i++) out[i] = static_cast<K>(weight[i] * scale);
}

template <typename W, typename K>
DW_FOR_EACH_CPU
void add_row(const K *gradient, W *sum, int64_t count) {
  for (int64_t i = 0; i < count; i++) sum[i] += static_cast<W>(gradient[i]);
}

// Like `add_row`, scaled; returns the sum of gradient times weight, in several accumulators so that
// the compiler can use vector instructions.
template <typename W, typename K>
DW_FOR_EACH_CPU
W add_scaled_row(const K *gradient, const W *weight, W scale, W *sum, int64_t count) {
  constexpr int64_t LANES = 16;
  W products[LANES] = {};
  const int64_t even = count - count % LANES;
  for (int64_t i = 0; i < even; i += LANES)
    for (int64_t lane = 0; lane < LANES; lane++) {
      const W g = static_cast<W>(gradient[i + lane]);
      products[lane] += g * weight[i + lane];
      sum[i + lane] += scale * g;
    }
  for (int64_t i = even; i < count; i++) {
    const W g = static_cast<W>(gradient[i]);
    products[i - even] += g * weight[i];
    sum[i] += scale * g;
  }
  W product = 0;
  for (const W p : products) product += p;
  return product;
}

// Calls `f` with a value of the type of `kind`, which is `weight`'s or bf16.
template <typename W, typename F>
void with_kind(at::ScalarType kind, const F &f) {
  if (kind == at::kBFloat16)
    f(at::BFloat16());
  else
    f(W());
}

}  // namespace

namespace dw {

bool has_rows(const Tensor &weight) {
  const auto kind = weight.scalar_type();
  return weight.is_cpu() && (kind == at::kFloat || kind == at::kDouble) &&
         weight.is_contiguous(dw::CHANNELS_LAST) && weight.numel() > 0;
}

void scale_rows(const Tensor &weight, const Tensor &scale, Tensor &out) {
  const int64_t columns = weight.numel() / weight.size(0);
  AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "scale_rows", [&] {
    with_kind<scalar_t>(out.scalar_type(), [&](auto type) {
      const auto *from = weight.const_data_ptr<scalar_t>();
      const auto *scales = scale.const_data_ptr<scalar_t>();
      auto *to = out.mutable_data_ptr<decltype(type)>();
      for_rows(weight, columns, [=](int64_t row, int64_t at) {
        scale_row(from + at, scales[row], to + at, columns);
      });
    });
  });
}

void add_gradients_cpu(const Tensor &weight, const Norm &norm, const Tensor &folded_norm,
                       const Tensor &dweight, const Tensor &dbias) {
  const int64_t rows = weight.size(0), columns = weight.numel() / rows;
  AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "add_gradients", [&] {
    const auto numbers = [](const Tensor &t) {
      return t.defined() ? t.const_data_ptr<scalar_t>() : nullptr;
    };
    const auto sum_of = [](const Tensor &t) {
      return t.defined() ? t.grad().mutable_data_ptr<scalar_t>() : nullptr;
    };
    const auto *weights = numbers(weight), *stats = numbers(folded_norm),
               *means = numbers(norm.mean), *biases = numbers(dbias);
    auto *to = sum_of(weight), *gammas = sum_of(norm.gamma), *betas = sum_of(norm.beta);
    with_kind<scalar_t>(dweight.scalar_type(), [&](auto type) {
      const auto *from = dweight.const_data_ptr<decltype(type)>();
      for_rows(weight, columns, [=](int64_t row, int64_t at) {
        if (!stats) return add_row(from + at, to + at, columns);
        const auto inverse = stats[rows + row], scale = stats[2 * rows + row];
        const auto product = add_scaled_row(from + at, weights + at, scale, to + at, columns);
        gammas[row] += (product - means[row] * biases[row]) * inverse;
        betas[row] += biases[row];
      });
    });
  });
}

}  // namespace dw
