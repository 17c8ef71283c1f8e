// The gradient of a ReLU on a CPU, and its sums.

#include "relu_cpu.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "chunks.h"
#include "common.h"
#include "vectorised.h"

namespace {

using at::Tensor;


template <typename T>
DW_FOR_EACH_CPU
void add_sums(const T *__restrict dy, int64_t positions, int64_t channels,
              float *__restrict sums) {
  for (int64_t p = 0; p < positions; p++, dy += channels)
    for (int64_t c = 0; c < channels; c++) sums[c] += static_cast<float>(dy[c]);
}

// As in libtorch, the gradient is dy where y is NaN.
template <typename T>
DW_FOR_EACH_CPU
void relu_gradient(const T *__restrict dy, const T *__restrict y, int64_t positions,
                   int64_t channels, T *__restrict grad, float *__restrict sums) {
  for (int64_t p = 0; p < positions; p++, dy += channels, y += channels, grad += channels)
    for (int64_t c = 0; c < channels; c++) {
      const float g = static_cast<float>(y[c]) <= 0 ? 0.0f : static_cast<float>(dy[c]);
      grad[c] = static_cast<T>(g);
      sums[c] += g;
    }
}

template <typename T>
std::vector<double> run(const Tensor &dy, const Tensor &y, Tensor &grad) {
  const dw::Chunks chunks(dy);
  const T *from = dy.const_data_ptr<T>();
  const T *outputs = y.defined() ? y.const_data_ptr<T>() : nullptr;
  T *to = y.defined() ? grad.mutable_data_ptr<T>() : nullptr;
  std::vector<float> partial(chunks.count() * chunks.channels);
  chunks.for_each([&](int64_t chunk, int64_t, int64_t offset, int64_t positions) {
    float *sums = &partial[chunk * chunks.channels];
    if (outputs)
      relu_gradient(from + offset, outputs + offset, positions, chunks.channels, to + offset,
                    sums);
    else
      add_sums(from + offset, positions, chunks.channels, sums);
  });
  return chunks.add(partial, chunks.channels);
}

}  // namespace

namespace dw {

bool has_relu_gradient_cpu(const Tensor &dy, const Tensor &y) {
  const auto kind = dy.scalar_type();
  return dy.is_cpu() && dy.dim() == 4 && dy.numel() > 0 &&
         (kind == at::kFloat || kind == at::kBFloat16) && dy.is_contiguous(dw::CHANNELS_LAST) &&
         (!y.defined() || (y.is_contiguous(dw::CHANNELS_LAST) && y.scalar_type() == kind));
}

std::pair<Tensor, Tensor> relu_gradient_cpu(const Tensor &dy, const Tensor &y) {
  auto grad = y.defined() ? at::empty_like(dy, dw::CHANNELS_LAST) : dy;
  const auto of_images = dy.scalar_type() == at::kFloat ? run<float>(dy, y, grad)
                                                        : run<at::BFloat16>(dy, y, grad);
  const int64_t channels = dy.size(1);
  auto sums = at::empty({channels}, dy.options().dtype(at::kFloat));
  auto *out = sums.mutable_data_ptr<float>();
  for (int64_t c = 0; c < channels; c++) {
    double sum = 0;
    for (int64_t image = 0; image < dy.size(0); image++) sum += of_images[image * channels + c];
    out[c] = static_cast<float>(sum);
  }
  return {grad, sums};
}

}  // namespace dw
