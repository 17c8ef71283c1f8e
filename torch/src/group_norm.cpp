// Group norm, optionally followed by ReLU: with ReLU on a GPU by the kernels of
// `src/device/kernels/group_norm.cu`, on a CPU by the loops of `group_norm_cpu.cpp`, and where
// neither applies by operations of libtorch.
//
// Shapes: B images, P positions, C channels, G groups, K chunks of positions.

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/group_norm.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sum.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>

#include "common.h"
#include "gradient.h"
#include "group_norm_cpu.h"
#include "kernels.h"

namespace {

using at::Tensor;
using dw::floats;
using dw::gradient_of;
using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

// Added to the variance, as in PyTorch's group norm.
constexpr double EPS = 1e-5;

struct Shape : dw::Positions {
  int groups;

  Shape(const Tensor &x, int64_t groups) : Positions(x), groups(static_cast<int>(groups)) {}
};

bool has_kernels(const Tensor &x, int64_t groups) {
  return dw::has_kernels(x) && x.size(1) / groups <= dw::THREADS;
}

struct GroupNormRelu : torch::autograd::Function<GroupNormRelu> {
  static Tensor forward(AutogradContext *ctx, const Tensor &x, const std::optional<Tensor> &bias,
                        const Tensor &gamma, const Tensor &beta, int64_t groups) {
    const auto input = x.contiguous(dw::CHANNELS_LAST);
    const Shape s(input, groups);
    const auto &kernels = *dw::kernels(input);
    const auto kind = dw::kind_index(input);
    const auto options = input.options().dtype(at::kFloat);
    const auto partial = at::empty({s.images, s.chunks, s.channels, 2}, options);
    const auto stats = at::empty({s.images, s.groups, 2}, options);
    const auto y = at::empty_like(input, dw::CHANNELS_LAST);
    const auto added = bias.value_or(Tensor());
    dw::launch(kernels.forward_sums[kind], input, s.chunks, s.images, input.const_data_ptr(),
               floats(added), partial.mutable_data_ptr(), s.positions, s.channels);
    dw::launch(kernels.forward_stats, input, s.groups, s.images, floats(partial),
               stats.mutable_data_ptr(), static_cast<int>(s.chunks), s.positions, s.channels,
               s.groups, static_cast<float>(EPS));
    dw::launch(kernels.forward[kind], input, s.chunks, s.images, input.const_data_ptr(),
               floats(added), floats(gamma), floats(beta), floats(stats), y.mutable_data_ptr(),
               s.positions, s.channels, s.groups);
    ctx->save_for_backward({input, added, gamma, beta, stats});
    ctx->saved_data["groups"] = groups;
    return y;
  }

  static tensor_list backward(AutogradContext *ctx, const tensor_list &grads) {
    const auto saved = ctx->get_saved_variables();
    const auto &x = saved[0], &bias = saved[1], &gamma = saved[2], &beta = saved[3],
               &stats = saved[4];
    const Shape s(x, ctx->saved_data["groups"].toInt());
    const auto &kernels = *dw::kernels(x);
    const auto kind = dw::kind_index(x);
    const auto dy = grads[0].contiguous(dw::CHANNELS_LAST);
    const auto options = x.options().dtype(at::kFloat);
    const auto partial = at::empty({s.images, s.chunks, s.channels, 3}, options);
    const auto means = at::empty({s.images, s.groups, 2}, options);
    const auto dparams = at::empty({s.images, s.channels, 3}, options);
    const auto dx = at::empty_like(x, dw::CHANNELS_LAST);
    dw::launch(kernels.backward_sums[kind], x, s.chunks, s.images, x.const_data_ptr(),
               dy.const_data_ptr(), floats(bias), floats(gamma), floats(beta), floats(stats),
               partial.mutable_data_ptr(), s.positions, s.channels, s.groups);
    dw::launch(kernels.backward_stats, x, s.groups, s.images, floats(partial), floats(gamma),
               floats(stats), means.mutable_data_ptr(), dparams.mutable_data_ptr(),
               static_cast<int>(s.chunks), s.positions, s.channels, s.groups);
    dw::launch(kernels.backward[kind], x, s.chunks, s.images, x.const_data_ptr(),
               dy.const_data_ptr(), floats(bias), floats(gamma), floats(beta), floats(stats),
               floats(means), dx.mutable_data_ptr(), s.positions, s.channels, s.groups);
    // One entry for each argument of forward.
    if (dw::has_gradient_buffer(gamma) && dw::has_gradient_buffer(beta) &&
        (!bias.defined() || dw::has_gradient_buffer(bias))) {
      dw::launch(kernels.add_params, x, (s.channels + dw::THREADS - 1) / dw::THREADS, 1,
                 floats(dparams), gradient_of(bias), gradient_of(gamma), gradient_of(beta),
                 s.images, s.channels);
      return {dx, Tensor(), Tensor(), Tensor(), Tensor()};
    }
    const auto sums = dparams.sum(0);
    return {dx, bias.defined() ? sums.select(1, 0) : Tensor(), sums.select(1, 1),
            sums.select(1, 2), Tensor()};
  }
};

struct GroupNormCpu : torch::autograd::Function<GroupNormCpu> {
  static Tensor forward(AutogradContext *ctx, const Tensor &any_layout, const Tensor &gamma,
                        const Tensor &beta, int64_t groups, bool relu) {
    const auto x = any_layout.contiguous(dw::CHANNELS_LAST);
    const auto [y, stats] = dw::group_norm_cpu(x, gamma, beta, groups, EPS, relu);
    ctx->saved_data["relu"] = relu;
    ctx->save_for_backward({x, gamma, beta, stats});
    return y;
  }

  static tensor_list backward(AutogradContext *ctx, const tensor_list &grads) {
    const auto saved = ctx->get_saved_variables();
    const auto dy = grads[0].contiguous(dw::CHANNELS_LAST);
    auto out = dw::group_norm_cpu_backward(dy, saved[0], saved[1], saved[2], saved[3],
                                           ctx->saved_data["relu"].toBool());
    // One entry for each argument of forward.
    out.resize(5);
    return out;
  }
};

// The same by operations of libtorch, in the parameters' kind.
Tensor composed(const Tensor &x, const Tensor *bias, const Tensor &gamma, const Tensor &beta,
                int64_t groups, bool relu) {
  auto u = x.to(gamma.scalar_type());
  if (bias) u = u + bias->view({1, -1, 1, 1});
  const auto y = at::group_norm(u, groups, gamma, beta, EPS);
  return (relu ? y.relu_() : y).to(x.scalar_type());
}

}  // namespace

extern "C" {

// Returns relu(group_norm(x + bias)) or, without `relu`, group_norm(x + bias) for x [B, C, H, W],
// bias (null: none), gamma and beta [C]: a new tensor of x's shape and kind; null on failure.
Tensor *dw_group_norm(const Tensor *x, const Tensor *bias, const Tensor *gamma, const Tensor *beta,
                      int64_t groups, int relu) {
  return dw::guarded(static_cast<Tensor *>(nullptr), [&] {
    if (relu && has_kernels(*x, groups)) {
      const auto optional = bias ? std::optional(*bias) : std::nullopt;
      return new Tensor(GroupNormRelu::apply(*x, optional, *gamma, *beta, groups));
    }
    if (!bias && dw::has_group_norm_cpu(*x, *gamma, *beta))
      return new Tensor(GroupNormCpu::apply(*x, *gamma, *beta, groups, relu != 0));
    return new Tensor(composed(*x, bias, *gamma, *beta, groups, relu != 0));
  });
}
}
