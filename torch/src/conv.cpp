// Convolution with a folded batch norm with fixed statistics, a residual and ReLU, as one node of
// the autograd graph.
//
// Shapes: B images, C input and O output channels, G groups, H x W input and h x w output size.

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/add.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/cudnn_convolution_add_relu.h>
#include <ATen/ops/cudnn_convolution_relu.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linalg_vecdot.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/threshold_backward.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "common.h"
#include "fold.h"
#include "kernels.h"
#include "relu_cpu.h"

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

std::optional<Tensor> if_defined(const Tensor &t) {
  return t.defined() ? std::optional(t) : std::nullopt;
}

// Settings of a convolution.
struct Spec {
  int64_t stride, padding, groups;
  bool relu;
};

// Inputs of a convolution. Undefined tensors are absent: no bias; no norm (its beta is `bias`); no
// residual; no copy of the weight in the kind of x.
struct Inputs {
  Tensor x, weight, bias, gamma, mean, var, residual, rounded;

  bool any_requires_grad() const {
    for (const auto *t : {&x, &weight, &bias, &gamma, &residual})
      if (t->defined() && t->requires_grad()) return true;
    return false;
  }

  dw::Norm norm() const { return {gamma, gamma.defined() ? bias : Tensor(), mean, var}; }
};

// Weight and bias with the norm folded in; without a norm, the weight in the kind of x.
dw::Folded fold(const Inputs &in) {
  const auto kind = in.x.scalar_type();
  if (in.gamma.defined()) return dw::fold(in.weight, in.norm(), kind);
  return {in.rounded.defined() ? in.rounded : in.weight.to(kind), Tensor(), Tensor()};
}

// The bias in the kind of the parameters; undefined if there is none.
Tensor bias_of(const Inputs &in, const dw::Folded &f) {
  return f.norm.defined() ? f.bias() : in.bias;
}

// The same in the kind of the activations.
std::optional<Tensor> rounded_bias(const Inputs &in, const dw::Folded &f) {
  if (f.rounded_bias.defined()) return f.rounded_bias;
  const auto bias = bias_of(in, f);
  return bias.defined() ? std::optional(bias.to(in.x.scalar_type())) : std::nullopt;
}

using Scalars = c10::List<std::optional<at::Scalar>>;
using Pointwise = Tensor(const Tensor &, const Tensor &, const std::optional<Tensor> &,
                         at::IntArrayRef, at::IntArrayRef, at::IntArrayRef, int64_t,
                         std::string_view, Scalars, std::optional<std::string_view>);
using PointwiseSum = Tensor &(Tensor &, const Tensor &, const Tensor &,
                              const std::optional<Tensor> &, at::IntArrayRef, at::IntArrayRef,
                              at::IntArrayRef, int64_t, std::string_view,
                              std::optional<at::Scalar>, std::optional<std::string_view>, Scalars,
                              std::optional<std::string_view>);

// relu(convolution + bias (+ residual)) in one call of oneDNN.
Tensor fused_on_cpu(const Inputs &in, const dw::Folded &f, const Spec &s) {
  const std::array stride{s.stride, s.stride}, padding{s.padding, s.padding};
  constexpr std::array<int64_t, 2> dilation{1, 1};
  const auto bias = rounded_bias(in, f);
  auto &dispatcher = c10::Dispatcher::singleton();
  if (in.residual.defined()) {
    // Writes into a copy of the residual: the call with a new output first converts the residual to
    // another memory layout, which takes several times as long (libtorch 2.11).
    static const auto op =
        dispatcher.findSchemaOrThrow("mkldnn::_convolution_pointwise_", "binary")
            .typed<PointwiseSum>();
    auto y = in.residual.clone();
    op.call(y, in.x, f.weight, bias, padding, stride, dilation, s.groups, "add", std::nullopt,
            "relu", Scalars(), std::nullopt);
    return y;
  }
  static const auto op =
      dispatcher.findSchemaOrThrow("mkldnn::_convolution_pointwise", "").typed<Pointwise>();
  return op.call(in.x, f.weight, bias, padding, stride, dilation, s.groups, "relu", Scalars(), "");
}

// The same in one call of cuDNN; undefined if it has no engine for this convolution.
Tensor fused_on_gpu(const Inputs &in, const dw::Folded &f, const Spec &s) {
  const std::array stride{s.stride, s.stride}, padding{s.padding, s.padding};
  constexpr std::array<int64_t, 2> dilation{1, 1};
  const auto bias = rounded_bias(in, f);
  try {
    if (in.residual.defined())
      return at::cudnn_convolution_add_relu(in.x, f.weight, in.residual, 1, bias, stride, padding,
                                            dilation, s.groups);
    return at::cudnn_convolution_relu(in.x, f.weight, bias, stride, padding, dilation, s.groups);
  } catch (const c10::OutOfMemoryError &) {
    throw;
  } catch (const c10::Error &e) {
    TORCH_WARN_ONCE("cuDNN cannot fuse a convolution with its ReLU, which makes training slower: ",
                    e.what_without_backtrace());
    return Tensor();
  }
}

bool is_channels_last(const Tensor &t) { return t.is_contiguous(dw::CHANNELS_LAST); }

// Whether oneDNN supports bf16 on this CPU.
bool bf16_in_onednn() {
  static const bool has =
      dw::cpu_has("avx512_bw") && dw::cpu_has("avx512_vl") && dw::cpu_has("avx512_dq");
  return has;
}

// Whether a library computes convolution, bias, residual and ReLU in one call: oneDNN in f32 and,
// on CPUs with AVX-512, in bf16; cuDNN with channels in multiples of 8.
bool has_fused(const Inputs &in, const Spec &s) {
  const auto kind = in.x.scalar_type();
  if (!s.relu) return false;
  if (in.x.is_cuda())
    return kind == at::kBFloat16 && s.groups == 1 && in.weight.size(0) % 8 == 0 &&
           in.weight.size(1) % 8 == 0;
  // For other residuals libtorch uses an operation that does not support bf16.
  if (in.residual.defined() &&
      (s.groups > 1 || !is_channels_last(in.x) || !is_channels_last(in.residual)))
    return false;
  return at::hasMKLDNN() && at::globalContext().userEnabledMkldnn() &&
         (kind == at::kFloat || (kind == at::kBFloat16 && bf16_in_onednn()));
}

// y += bias.
void add_bias(Tensor &y, const Tensor &bias) {
  if (!dw::has_kernels(y) || !is_channels_last(y)) {
    y.add_(bias.to(y.scalar_type()).view({1, -1, 1, 1}));
    return;
  }
  const dw::Positions s(y);
  dw::launch(dw::kernels(y)->add_bias[dw::kind_index(y)], y, s.chunks, s.images,
             y.mutable_data_ptr(), bias.const_data_ptr(), s.positions, s.channels);
}

// The gradient before the ReLU whose output is `y` (undefined: no ReLU), and its sums [C], if
// `with_sums`.
std::pair<Tensor, Tensor> before_relu(Tensor dy, const Tensor &y, bool with_sums) {
  if (dw::kernels(dy)) dy = dy.contiguous(dw::CHANNELS_LAST);
  if (!with_sums || !dw::has_kernels(dy) || (y.defined() && !is_channels_last(y))) {
    if (with_sums && dw::has_relu_gradient_cpu(dy, y)) return dw::relu_gradient_cpu(dy, y);
    return {y.defined() ? at::threshold_backward(dy, y, 0) : dy, Tensor()};
  }
  const dw::Positions s(dy);
  const auto grad = y.defined() ? at::empty_like(dy) : dy;
  const auto partial =
      at::empty({s.images * s.chunks, s.channels}, dy.options().dtype(at::kFloat));
  dw::launch(dw::kernels(dy)->bias_sums[dw::kind_index(dy)], dy, s.chunks, s.images,
             dy.const_data_ptr(), y.defined() ? y.const_data_ptr() : nullptr,
             y.defined() ? grad.mutable_data_ptr() : nullptr, partial.mutable_data_ptr(),
             s.positions, s.channels);
  return {grad, partial.sum(0)};
}

Tensor compute(const Inputs &in, const dw::Folded &f, const Spec &s) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  if (has_fused(in, s)) {
    const auto y = in.x.is_cuda() ? fused_on_gpu(in, f, s) : fused_on_cpu(in, f, s);
    if (y.defined()) return y;
  }
  const std::array stride{s.stride, s.stride}, padding{s.padding, s.padding};
  constexpr std::array<int64_t, 2> dilation{1, 1}, none{0, 0};
  // libtorch would add the bias in the kind of the activations and, on a GPU, in a separate
  // operation.
  const auto own_bias = dw::kernels(in.x) ? bias_of(in, f) : Tensor();
  auto y = at::convolution(in.x, f.weight, own_bias.defined() ? std::nullopt : rounded_bias(in, f),
                           stride, padding, dilation, /*transposed=*/false, none, s.groups);
  if (own_bias.defined()) add_bias(y, own_bias);
  if (in.residual.defined()) y.add_(in.residual);
  return s.relu ? y.relu_() : y;
}

struct Conv : torch::autograd::Function<Conv> {
  using Optional = std::optional<Tensor>;

  // libtorch accepts absent tensors only as `std::optional`.
  static Tensor forward(AutogradContext *ctx, const Tensor &x, const Tensor &weight,
                        const Optional &bias, const Optional &gamma, const Optional &mean,
                        const Optional &var, const Optional &residual, const Optional &rounded,
                        const Spec &s) {
    const auto or_undefined = [](const Optional &t) { return t.value_or(Tensor()); };
    const Inputs in{x,
                    weight,
                    or_undefined(bias),
                    or_undefined(gamma),
                    or_undefined(mean),
                    or_undefined(var),
                    or_undefined(residual),
                    or_undefined(rounded)};
    const auto folded = fold(in);
    const auto y = compute(in, folded, s);
    // On a CPU, backward computes the folded or rounded weight again unless the caller passed the
    // rounded one: saved copies of all layers would be alive at once, and one pass over the weights
    // takes little time. On a GPU it is saved, because computing it again would be one more launch
    // for each layer.
    const bool saves_weight = !x.is_cpu() || in.rounded.defined();
    ctx->save_for_backward({x, weight, in.gamma, in.norm().beta, in.mean, folded.norm,
                            saves_weight ? folded.weight : Tensor(), s.relu ? y : Tensor()});
    auto &data = ctx->saved_data;
    data["stride"] = s.stride;
    data["padding"] = s.padding;
    data["groups"] = s.groups;
    // `needs_input_grad` counts only the arguments that are defined, so each is noted by name.
    const auto note = [&](const char *name, const Tensor &t) {
      data[name] = t.defined() && t.requires_grad();
    };
    note("x", x);
    note("weight", weight);
    note("bias", in.bias);
    note("gamma", in.gamma);
    note("residual", in.residual);
    if (bias) data["bias_kind"] = static_cast<int64_t>(bias->scalar_type());
    return y;
  }

  static tensor_list backward(AutogradContext *ctx, const tensor_list &grads) {
    const auto saved = ctx->get_saved_variables();
    const auto &x = saved[0], &weight = saved[1];
    const dw::Norm norm{saved[2], saved[3], saved[4], /*var=*/Tensor()};
    const dw::Folded folded{saved[6].defined() ? saved[6] : used_weight(x, weight, saved[5]),
                            saved[5], /*rounded_bias=*/Tensor()};
    const auto &y = saved[7];
    auto &data = ctx->saved_data;
    const auto needs = [&](const char *name) { return data[name].toBool(); };
    const auto number = [&](const char *name) { return data[name].toInt(); };
    const bool with_weight = needs("weight") || needs("gamma");
    const bool with_bias = needs("bias") || needs("gamma");
    const auto [grad, sums] = before_relu(grads[0], y, with_bias);
    const std::array stride{number("stride"), number("stride")},
        padding{number("padding"), number("padding")};
    constexpr std::array<int64_t, 2> dilation{1, 1}, none{0, 0};
    const std::array<int64_t, 1> channels{weight.size(0)};
    const auto kind = backward_kind(x, weight, stride[0]);
    const bool product = with_weight && (sums.defined() || !with_bias) &&
                         is_product(x, weight, number("padding"));
    auto [dx, dweight, dbias] = at::convolution_backward(
        grad.to(kind), x.to(kind), folded.weight.to(kind), channels, stride, padding, dilation,
        /*transposed=*/false, none, number("groups"),
        {needs("x"), with_weight && !product, with_bias && !sums.defined()});
    if (sums.defined()) dbias = sums;
    if (product) dweight = as_product(grad, x, stride[0]);
    if (dx.defined()) dx = dx.to(x.scalar_type());
    // One entry for each argument of forward.
    tensor_list out(9);
    out[0] = dx;
    if (needs("residual")) out[6] = grad;
    if (with_bias) dbias = dbias.to(static_cast<at::ScalarType>(number("bias_kind")));
    const bool added = needs("weight") && dw::adds_gradients(weight, norm);
    if (added) {
      // The gradients are in their buffers, so these entries stay undefined.
      dw::add_gradients(weight, norm, folded.norm, dweight, dbias);
    } else if (with_weight) {
      dweight = dweight.to(weight.scalar_type());
      if (needs("gamma"))
        out[3] = at::linalg_vecdot(rows(dweight), rows(weight))
                     .addcmul_(norm.mean, dbias, -1)
                     .mul_(folded.inverse());
      if (needs("weight"))
        out[1] = norm.defined() ? dweight.mul_(folded.scale().view({-1, 1, 1, 1})) : dweight;
    }
    if (needs("bias") && !(added && norm.defined())) out[2] = dbias;
    return out;
  }

  // The weight that forward used.
  static Tensor used_weight(const Tensor &x, const Tensor &weight, const Tensor &folded_norm) {
    const auto kind = x.scalar_type();
    return folded_norm.defined() ? dw::fold_again(weight, folded_norm, kind) : weight.to(kind);
  }

  // The kind to compute the gradients in. oneDNN (of libtorch 2.11) leaves bf16 gradients of a
  // weight partly uninitialised where its kernel is wider than the input, as on the smallest maps
  // of narrow images, and crashes for few channels with a 1 x 1 kernel and stride 2.
  static at::ScalarType backward_kind(const Tensor &x, const Tensor &weight, int64_t stride) {
    const bool narrow = std::min(x.size(2), x.size(3)) < weight.size(3);
    const bool few = weight.size(1) < 16 && weight.size(3) == 1 && stride > 1;
    return x.is_cpu() && (narrow || few) ? weight.scalar_type() : x.scalar_type();
  }

  // Whether the gradient of a weight is computed as one matrix product in bf16. A convolution takes
  // longer: oneDNN changes the memory layout of its result, and libtorch changes it once more.
  static bool is_product(const Tensor &x, const Tensor &weight, int64_t padding) {
    return x.is_cpu() && x.scalar_type() == at::kBFloat16 && bf16_in_onednn() &&
           weight.size(1) == x.size(1) && weight.size(2) == 1 && weight.size(3) == 1 &&
           padding == 0;
  }

  // The gradient [O, C, 1, 1] of a 1 x 1 kernel: all positions of `grad` times those of `x` that
  // the kernel is applied to.
  static Tensor as_product(const Tensor &grad, const Tensor &x, int64_t stride) {
    const auto used = stride == 1 ? x : x.slice(2, 0, std::nullopt, stride)
                                            .slice(3, 0, std::nullopt, stride);
    const auto positions = [](const Tensor &t) {
      return t.permute({0, 2, 3, 1}).reshape({-1, t.size(1)});
    };
    return at::mm(positions(grad).t(), positions(used)).view({grad.size(1), x.size(1), 1, 1});
  }

  // A weight [O, C / G, kh, kw] as [O, kh kw C / G]: a view of channels-last memory.
  static Tensor rows(const Tensor &weight) {
    return weight.permute({0, 2, 3, 1}).reshape({weight.size(0), -1});
  }
};

Tensor or_undefined(const Tensor *t) { return t ? *t : Tensor(); }

}  // namespace

extern "C" {

// Convolves x [B, C, H, W] and returns a new tensor [B, O, h, w] of x's kind; null on failure.
// weight [O, C / G, k, k]; bias [O]; gamma, mean and var [O] of the fixed batch norm (its beta is
// `bias`); residual [B, O, h, w]; `rounded`: the weight in x's kind, without gradient. All but x
// and weight may be null.
Tensor *dw_conv(const Tensor *x, const Tensor *weight, const Tensor *bias, const Tensor *gamma,
                const Tensor *mean, const Tensor *var, const Tensor *residual,
                const Tensor *rounded, int64_t stride, int64_t padding, int64_t groups,
                int relu) {
  return dw::guarded(static_cast<Tensor *>(nullptr), [&] {
    const Inputs in{*x,
                    *weight,
                    or_undefined(bias),
                    or_undefined(gamma),
                    or_undefined(mean),
                    or_undefined(var),
                    or_undefined(residual),
                    or_undefined(rounded)};
    const Spec spec{stride, padding, groups, relu != 0};
    if (at::GradMode::is_enabled() && in.any_requires_grad())
      return new Tensor(Conv::apply(in.x, in.weight, if_defined(in.bias), if_defined(in.gamma),
                                    if_defined(in.mean), if_defined(in.var),
                                    if_defined(in.residual), if_defined(in.rounded), spec));
    // Frozen layers and evaluation need no node of the autograd graph.
    at::NoGradGuard no_grad;
    return new Tensor(compute(in, fold(in), spec));
  });
}
}
