// Group norm, optionally followed by ReLU, on a CPU. libtorch's own (2.11, channels-last, bf16)
// takes several times as long as reading and writing the tensors.
//
// Shapes: B images, P positions, C channels, G groups.

#include "group_norm_cpu.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "chunks.h"
#include "common.h"
#include "vectorised.h"

namespace {

using at::Tensor;

struct Shape : dw::Chunks {
  int64_t groups;

  Shape(const Tensor &x, int64_t groups) : Chunks(x), groups(groups) {}

  int64_t group_of(int64_t channel) const { return channel / (channels / groups); }
  // Number of elements that are normalised together.
  double numbers() const { return static_cast<double>(positions * (channels / groups)); }
};

// Adds each channel's values to sums[C], and their squares to squares[C].
template <typename T>
DW_FOR_EACH_CPU
void add_moments(const T *__restrict x, int64_t positions, int64_t channels,
                 float *__restrict sums, float *__restrict squares) {
  for (int64_t p = 0; p < positions; p++, x += channels)
    for (int64_t c = 0; c < channels; c++) {
      const auto v = static_cast<float>(x[c]);
      sums[c] += v;
      squares[c] += v * v;
    }
}

// The lower bound of the output: 0 with ReLU, else none.
float bound(bool relu) { return relu ? 0.0f : -std::numeric_limits<float>::infinity(); }

// y = max(scale x + shift, low); NaN stays NaN.
template <typename T>
DW_FOR_EACH_CPU
void normalise(const T *__restrict x, int64_t positions, int64_t channels,
               const float *__restrict scale, const float *__restrict shift, float low,
               T *__restrict y) {
  for (int64_t p = 0; p < positions; p++, x += channels, y += channels)
    for (int64_t c = 0; c < channels; c++) {
      const float v = static_cast<float>(x[c]) * scale[c] + shift[c];
      y[c] = static_cast<T>(v < low ? low : v);
    }
}

// The gradient before the bound of `normalise`.
template <typename T>
inline float before_bound(T dy, float x, float scale, float shift, float low) {
  return x * scale + shift <= low ? 0.0f : static_cast<float>(dy);
}

// Adds each channel's gradients g before the bound to sums[C], and g x to products[C].
template <typename T>
DW_FOR_EACH_CPU
void add_gradients(const T *__restrict dy, const T *__restrict x, int64_t positions,
                   int64_t channels, const float *__restrict scale, const float *__restrict shift,
                   float low, float *__restrict sums, float *__restrict products) {
  for (int64_t p = 0; p < positions; p++, x += channels, dy += channels)
    for (int64_t c = 0; c < channels; c++) {
      const auto v = static_cast<float>(x[c]);
      const float g = before_bound(dy[c], v, scale[c], shift[c], low);
      sums[c] += g;
      products[c] += g * v;
    }
}

// dx = scale g + slope x + offset.
template <typename T>
DW_FOR_EACH_CPU
void gradient(const T *__restrict dy, const T *__restrict x, int64_t positions, int64_t channels,
              const float *__restrict scale, const float *__restrict shift, float low,
              const float *__restrict slope, const float *__restrict offset, T *__restrict dx) {
  for (int64_t p = 0; p < positions; p++, x += channels, dy += channels, dx += channels)
    for (int64_t c = 0; c < channels; c++) {
      const auto v = static_cast<float>(x[c]);
      const float g = before_bound(dy[c], v, scale[c], shift[c], low);
      dx[c] = static_cast<T>(scale[c] * g + slope[c] * v + offset[c]);
    }
}

// Norm and parameters as one scale and one shift for each image and channel, [B, C] each.
struct Affine {
  std::vector<float> scale, shift;

  Affine(const Shape &s, const Tensor &gamma, const Tensor &beta, const double *stats)
      : scale(s.images * s.channels), shift(s.images * s.channels) {
    const auto *gammas = gamma.const_data_ptr<float>(), *betas = beta.const_data_ptr<float>();
    for (int64_t i = 0; i < s.images * s.channels; i++) {
      const int64_t image = i / s.channels, c = i % s.channels;
      const double *group = stats + 2 * (image * s.groups + s.group_of(c));
      const double factor = gammas[c] * group[1];
      scale[i] = static_cast<float>(factor);
      shift[i] = static_cast<float>(betas[c] - group[0] * factor);
    }
  }
};

// Mean and inverse standard deviation of each group, to stats [B, G, 2].
template <typename T>
void moments(const T *x, const Shape &s, double eps, double *stats) {
  std::vector<float> partial(s.count() * 2 * s.channels);
  s.for_each([&](int64_t chunk, int64_t, int64_t offset, int64_t count) {
    float *sums = &partial[chunk * 2 * s.channels];
    add_moments(x + offset, count, s.channels, sums, sums + s.channels);
  });
  const auto sums = s.add(partial, 2 * s.channels);
  for (int64_t i = 0; i < s.images * s.groups; i++) {
    const int64_t image = i / s.groups, width = s.channels / s.groups;
    const double *sum = &sums[image * 2 * s.channels + i % s.groups * width];
    double total = 0, squares = 0;
    for (int64_t c = 0; c < width; c++) total += sum[c], squares += sum[s.channels + c];
    const double mean = total / s.numbers();
    stats[2 * i] = mean;
    // NaN stays NaN.
    const double var = squares / s.numbers() - mean * mean;
    stats[2 * i + 1] = 1 / std::sqrt((var < 0 ? 0 : var) + eps);
  }
}

template <typename T>
void forward(const Tensor &x, const Tensor &gamma, const Tensor &beta, const Shape &s, double eps,
             float low, Tensor &y, Tensor &stats) {
  const T *from = x.const_data_ptr<T>();
  auto *numbers = stats.mutable_data_ptr<double>();
  moments(from, s, eps, numbers);
  const Affine affine(s, gamma, beta, numbers);
  T *to = y.mutable_data_ptr<T>();
  s.for_each([&](int64_t, int64_t image, int64_t offset, int64_t count) {
    normalise(from + offset, count, s.channels, &affine.scale[image * s.channels],
              &affine.shift[image * s.channels], low, to + offset);
  });
}

// The coefficient of x and the constant term of dx, [B, C] each.
struct Slopes {
  std::vector<float> slope, offset;

  // Adds the gradients of the parameters to dgamma and dbeta [C]. `sums` are those of
  // `add_gradients`, [B, 2, C].
  Slopes(const Shape &s, const std::vector<double> &sums, const float *gammas,
         const double *stats, double *dgamma, double *dbeta)
      : slope(s.images * s.channels), offset(s.images * s.channels) {
    const int64_t width = s.channels / s.groups;
    for (int64_t i = 0; i < s.images * s.groups; i++) {
      const int64_t image = i / s.groups, first = i % s.groups * width;
      const double *sum = &sums[image * 2 * s.channels];
      const double mean = stats[2 * i], inverse = stats[2 * i + 1];
      double mean_g = 0, mean_gx = 0;
      for (int64_t c = first; c < first + width; c++) {
        const double normalised = (sum[s.channels + c] - mean * sum[c]) * inverse;
        dbeta[c] += sum[c];
        dgamma[c] += normalised;
        mean_g += gammas[c] * sum[c] / s.numbers();
        mean_gx += gammas[c] * normalised / s.numbers();
      }
      const double factor = -inverse * inverse * mean_gx;
      for (int64_t c = first; c < first + width; c++) {
        slope[image * s.channels + c] = static_cast<float>(factor);
        offset[image * s.channels + c] = static_cast<float>(-inverse * mean_g - factor * mean);
      }
    }
  }
};

template <typename T>
void backward(const Tensor &dy, const Tensor &x, const Tensor &gamma, const Tensor &beta,
              const Tensor &stats, const Shape &s, float low, Tensor &dx, double *dgamma,
              double *dbeta) {
  const T *grads = dy.const_data_ptr<T>(), *from = x.const_data_ptr<T>();
  const auto *numbers = stats.const_data_ptr<double>();
  const Affine affine(s, gamma, beta, numbers);
  std::vector<float> partial(s.count() * 2 * s.channels);
  s.for_each([&](int64_t chunk, int64_t image, int64_t offset, int64_t count) {
    float *sums = &partial[chunk * 2 * s.channels];
    add_gradients(grads + offset, from + offset, count, s.channels,
                  &affine.scale[image * s.channels], &affine.shift[image * s.channels], low, sums,
                  sums + s.channels);
  });
  const Slopes slopes(s, s.add(partial, 2 * s.channels), gamma.const_data_ptr<float>(), numbers,
                      dgamma, dbeta);
  T *to = dx.mutable_data_ptr<T>();
  s.for_each([&](int64_t, int64_t image, int64_t offset, int64_t count) {
    const int64_t at = image * s.channels;
    gradient(grads + offset, from + offset, count, s.channels, &affine.scale[at],
             &affine.shift[at], low, &slopes.slope[at], &slopes.offset[at], to + offset);
  });
}

}  // namespace

namespace dw {

bool has_group_norm_cpu(const Tensor &x, const Tensor &gamma, const Tensor &beta) {
  const auto kind = x.scalar_type();
  return x.is_cpu() && x.dim() == 4 && x.numel() > 0 &&
         (kind == at::kFloat || kind == at::kBFloat16) && gamma.scalar_type() == at::kFloat &&
         beta.scalar_type() == at::kFloat && gamma.is_contiguous() && beta.is_contiguous();
}

std::pair<Tensor, Tensor> group_norm_cpu(const Tensor &x, const Tensor &gamma, const Tensor &beta,
                                         int64_t groups, double eps, bool relu) {
  const Shape s(x, groups);
  TORCH_CHECK(groups > 0 && s.channels % groups == 0, s.channels, " channels in ", groups,
              " groups");
  TORCH_CHECK(gamma.numel() == s.channels && beta.numel() == s.channels,
              "group norm: parameters of ", gamma.numel(), " and ", beta.numel(), ", expected ",
              s.channels, " channels");
  auto y = at::empty_like(x, dw::CHANNELS_LAST);
  auto stats = at::empty({s.images, groups, 2}, x.options().dtype(at::kDouble));
  if (x.scalar_type() == at::kFloat)
    forward<float>(x, gamma, beta, s, eps, bound(relu), y, stats);
  else
    forward<at::BFloat16>(x, gamma, beta, s, eps, bound(relu), y, stats);
  return {y, stats};
}

std::vector<Tensor> group_norm_cpu_backward(const Tensor &dy, const Tensor &x,
                                            const Tensor &gamma, const Tensor &beta,
                                            const Tensor &stats, bool relu) {
  const Shape s(x, stats.size(1));
  auto dx = at::empty_like(x, dw::CHANNELS_LAST);
  std::vector<double> dgamma(s.channels), dbeta(s.channels);
  const float low = bound(relu);
  if (x.scalar_type() == at::kFloat)
    backward<float>(dy, x, gamma, beta, stats, s, low, dx, dgamma.data(), dbeta.data());
  else
    backward<at::BFloat16>(dy, x, gamma, beta, stats, s, low, dx, dgamma.data(), dbeta.data());
  const auto tensor = [&](const std::vector<double> &values) {
    auto t = at::empty({s.channels}, gamma.options());
    std::copy(values.begin(), values.end(), t.mutable_data_ptr<float>());
    return t;
  };
  return {dx, tensor(dgamma), tensor(dbeta)};
}

}  // namespace dw
