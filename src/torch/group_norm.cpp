// Group norm followed by ReLU on a GPU, by the kernels of `src/device/kernels/group_norm.cu` or, if
// those are not loaded, by operations of libtorch.
//
// Shapes: B images, P positions, C channels, G groups, K chunks of positions.

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/group_norm.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sum.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <optional>

#include "common.h"

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

constexpr double EPS = 1e-5;
// Those of the kernels' source.
constexpr int THREADS = 256, WIDTH = 8;

// The kernels, as CUfunction, in the order of `NAMES` in `src/device/kernels.rs`. Those with two
// entries are for f32 and bf16.
struct Kernels {
  void *forward_sums[2], *forward[2], *backward_sums[2], *backward[2], *forward_stats,
      *backward_stats;
};
// cuLaunchKernel of the CUDA driver.
using Launch = int (*)(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                       unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                       void *stream, void **arguments, void **extra);

Kernels kernels;
std::atomic<Launch> launch_function{nullptr};

// Runs a kernel on the device's current stream.
template <typename... Arguments>
void launch(void *kernel, const Tensor &on, int64_t grid_x, int64_t grid_y,
            Arguments... arguments) {
  const c10::impl::VirtualGuardImpl guard(on.device().type());
  void *pointers[] = {&arguments...};
  const int code = launch_function.load()(
      kernel, static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y), 1, THREADS, 1, 1, 0,
      guard.getStream(on.device()).native_handle(), pointers, nullptr);
  TORCH_CHECK(code == 0, "CUDA error ", code, " when launching a kernel of group norm");
}

struct Shape {
  int images, positions, channels, groups;
  int64_t chunks;

  Shape(const Tensor &x, int64_t groups)
      : images(static_cast<int>(x.size(0))),
        positions(static_cast<int>(x.size(2) * x.size(3))),
        channels(static_cast<int>(x.size(1))),
        groups(static_cast<int>(groups)),
        // About a thousand blocks, of at least 32 positions each.
        chunks(std::clamp<int64_t>(1024 / std::max(images, 1), 1,
                                   std::max<int64_t>(positions / 32, 1))) {}
};

bool has_kernels(const Tensor &x, int64_t groups) {
  const auto kind = x.scalar_type();
  return launch_function.load() != nullptr && x.is_cuda() && x.numel() > 0 &&
         (kind == at::kFloat || kind == at::kBFloat16) && x.size(1) % WIDTH == 0 &&
         x.size(1) <= THREADS * WIDTH && x.size(1) / groups <= THREADS;
}

const float *floats(const Tensor &t) { return t.defined() ? t.const_data_ptr<float>() : nullptr; }

struct GroupNormRelu : torch::autograd::Function<GroupNormRelu> {
  static Tensor forward(AutogradContext *ctx, const Tensor &x, const std::optional<Tensor> &bias,
                        const Tensor &gamma, const Tensor &beta, int64_t groups) {
    const auto input = x.contiguous(at::MemoryFormat::ChannelsLast);
    const Shape s(input, groups);
    const auto kind = input.scalar_type() == at::kBFloat16 ? 1 : 0;
    const auto options = input.options().dtype(at::kFloat);
    const auto partial = at::empty({s.images, s.chunks, s.channels, 2}, options);
    const auto stats = at::empty({s.images, s.groups, 2}, options);
    const auto y = at::empty_like(input, at::MemoryFormat::ChannelsLast);
    const auto added = bias.value_or(Tensor());
    launch(kernels.forward_sums[kind], input, s.chunks, s.images, input.const_data_ptr(),
           floats(added), partial.mutable_data_ptr(), s.positions, s.channels);
    launch(kernels.forward_stats, input, s.groups, s.images, floats(partial),
           stats.mutable_data_ptr(), static_cast<int>(s.chunks), s.positions, s.channels, s.groups,
           static_cast<float>(EPS));
    launch(kernels.forward[kind], input, s.chunks, s.images, input.const_data_ptr(), floats(added),
           floats(gamma), floats(beta), floats(stats), y.mutable_data_ptr(), s.positions,
           s.channels, s.groups);
    ctx->save_for_backward({input, added, gamma, beta, stats});
    ctx->saved_data["groups"] = groups;
    return y;
  }

  static tensor_list backward(AutogradContext *ctx, const tensor_list &grads) {
    const auto saved = ctx->get_saved_variables();
    const auto &x = saved[0], &bias = saved[1], &gamma = saved[2], &beta = saved[3],
               &stats = saved[4];
    const Shape s(x, ctx->saved_data["groups"].toInt());
    const auto kind = x.scalar_type() == at::kBFloat16 ? 1 : 0;
    const auto dy = grads[0].contiguous(at::MemoryFormat::ChannelsLast);
    const auto options = x.options().dtype(at::kFloat);
    const auto partial = at::empty({s.images, s.chunks, s.channels, 3}, options);
    const auto means = at::empty({s.images, s.groups, 2}, options);
    const auto dparams = at::empty({s.images, s.channels, 3}, options);
    const auto dx = at::empty_like(x, at::MemoryFormat::ChannelsLast);
    launch(kernels.backward_sums[kind], x, s.chunks, s.images, x.const_data_ptr(),
           dy.const_data_ptr(), floats(bias), floats(gamma), floats(beta), floats(stats),
           partial.mutable_data_ptr(), s.positions, s.channels, s.groups);
    launch(kernels.backward_stats, x, s.groups, s.images, floats(partial), floats(gamma),
           floats(stats), means.mutable_data_ptr(), dparams.mutable_data_ptr(),
           static_cast<int>(s.chunks), s.positions, s.channels, s.groups);
    launch(kernels.backward[kind], x, s.chunks, s.images, x.const_data_ptr(), dy.const_data_ptr(),
           floats(bias), floats(gamma), floats(beta), floats(stats), floats(means),
           dx.mutable_data_ptr(), s.positions, s.channels, s.groups);
    const auto sums = dparams.sum(0);
    // One entry for each argument of forward.
    return {dx, bias.defined() ? sums.select(1, 0) : Tensor(), sums.select(1, 1),
            sums.select(1, 2), Tensor()};
  }
};

// The same by operations of libtorch, which has no group norm with parameters of another kind on
// GPUs.
Tensor composed(const Tensor &x, const Tensor *bias, const Tensor &gamma, const Tensor &beta,
                int64_t groups) {
  const auto kind = x.scalar_type();
  const auto u = bias ? x + bias->to(kind).view({1, -1, 1, 1}) : x;
  return at::group_norm(u, groups, gamma.to(kind), beta.to(kind), EPS).relu_();
}

}  // namespace

extern "C" {

// Sets the kernels and the driver's cuLaunchKernel; null switches the kernels off.
void dw_group_norm_kernels(void *const *functions, void *launcher) {
  if (launcher) std::copy_n(functions, sizeof(Kernels) / sizeof(void *), &kernels.forward_sums[0]);
  launch_function = reinterpret_cast<Launch>(launcher);
}

// Whether the kernels are loaded.
int dw_has_group_norm_kernels() { return launch_function.load() != nullptr ? 1 : 0; }

// x [B, C, H, W], bias (null: none), gamma and beta [C] to relu(group_norm(x + bias)), a new tensor
// of x's shape and kind; null on failure.
Tensor *dw_group_norm_relu(const Tensor *x, const Tensor *bias, const Tensor *gamma,
                           const Tensor *beta, int64_t groups) {
  return dw::guarded(static_cast<Tensor *>(nullptr), [&] {
    if (!has_kernels(*x, groups)) return new Tensor(composed(*x, bias, *gamma, *beta, groups));
    const auto optional = bias ? std::optional(*bias) : std::nullopt;
    return new Tensor(GroupNormRelu::apply(*x, optional, *gamma, *beta, groups));
  });
}
}
