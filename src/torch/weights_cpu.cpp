// A convolution's weight on a CPU: its copy for the convolution, and the gradient of that copy, in
// one pass each over the weights of the network, where libtorch's operations take several.
//
// Weights [O, C / G, k, k] in channels-last memory are O rows.

#include "weights.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>

#include <algorithm>

#include "vectorised.h"

namespace {

using at::Tensor;

constexpr auto LAYOUT = at::MemoryFormat::ChannelsLast;

// Numbers a thread should have at least.
constexpr int64_t GRAIN = 1 << 15;

// Calls `f(row, offset)` on libtorch's threads, with the index of each row of `weight` and that of
// its first number.
template <typename F>
void for_rows(const Tensor &weight, int64_t columns, const F &f) {
  const int64_t grain = std::max<int64_t>(GRAIN / columns, 1);
  at::parallel_for(0, weight.size(0), grain, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) f(row, row * columns);
  });
}

// The loops read one number of `scale` for each row.
void check_scale(const Tensor &weight, const Tensor &scale) {
  TORCH_CHECK(scale.numel() == weight.size(0) && scale.is_contiguous(), "a scale of ",
              scale.numel(), " numbers for ", weight.size(0), " output channels");
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

// As `add_row`, scaled; returns the sum of gradient times weight. It is accumulated in several
// numbers, so that the compiler can use vector instructions.
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

// Whether a weight, or the buffer of its gradient, is a number of rows on the CPU.
bool has_rows(const Tensor &t) {
  const auto kind = t.scalar_type();
  return t.is_cpu() && (kind == at::kFloat || kind == at::kDouble) && t.is_contiguous(LAYOUT) &&
         t.numel() > 0;
}

}  // namespace

namespace dw {

Tensor scaled_weight(const Tensor &weight, const Tensor &scale, at::ScalarType kind) {
  auto out = at::empty_like(weight, weight.options().dtype(kind));
  const bool known = kind == weight.scalar_type() || kind == at::kBFloat16;
  if (!known || !has_rows(weight)) {
    at::mul_out(out, weight, scale.view({-1, 1, 1, 1}));
    return out;
  }
  check_scale(weight, scale);
  const int64_t columns = weight.numel() / weight.size(0);
  AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "scaled_weight", [&] {
    with_kind<scalar_t>(kind, [&](auto type) {
      const auto *from = weight.const_data_ptr<scalar_t>();
      const auto *scales = scale.const_data_ptr<scalar_t>();
      auto *to = out.mutable_data_ptr<decltype(type)>();
      for_rows(weight, columns, [=](int64_t row, int64_t at) {
        scale_row(from + at, scales[row], to + at, columns);
      });
    });
  });
  return out;
}

bool adds_weight_gradient(const Tensor &weight) {
  if (!has_rows(weight) || !weight.is_leaf() || at::GradMode::is_enabled()) return false;
  const auto &sum = weight.grad();
  return sum.defined() && sum.scalar_type() == weight.scalar_type() && has_rows(sum);
}

Tensor add_weight_gradient(const Tensor &weight, const Tensor &any_layout, const Tensor &scale) {
  if (scale.defined()) check_scale(weight, scale);
  const auto gradient = any_layout.contiguous(LAYOUT);
  auto sum = weight.grad();
  const auto products = scale.defined() ? at::empty_like(scale) : Tensor();
  const int64_t columns = weight.numel() / weight.size(0);
  AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "add_weight_gradient", [&] {
    with_kind<scalar_t>(gradient.scalar_type(), [&](auto type) {
      const auto *from = gradient.const_data_ptr<decltype(type)>();
      const auto *weights = weight.const_data_ptr<scalar_t>();
      auto *to = sum.mutable_data_ptr<scalar_t>();
      const auto *scales = scale.defined() ? scale.const_data_ptr<scalar_t>() : nullptr;
      auto *results = scale.defined() ? products.mutable_data_ptr<scalar_t>() : nullptr;
      for_rows(weight, columns, [=](int64_t row, int64_t at) {
        if (scales)
          results[row] = add_scaled_row(from + at, weights + at, scales[row], to + at, columns);
        else
          add_row(from + at, to + at, columns);
      });
    });
  });
  return products;
}

}  // namespace dw
