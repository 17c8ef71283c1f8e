// Modulated deformable convolution (DCNv2, as mmcv's) with bounded memory; one offset group.
//
// Shapes: B images, C input and O output channels, G groups, K = kh kw kernel taps, H x W input and
// h x w output size.

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "common.h"

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

// Output rows `top .. top + r` of a modulated deformable convolution of one image, composed of
// differentiable operations: input [1, C, H, W], offset [1, 2 K, r, w] as (dy, dx) for each tap,
// mask [1, K, r, w], weight [O, C / G, kh, kw] -> [1, O, r, w].
Tensor deform_rows(const Tensor &input, const Tensor &offset, const Tensor &mask,
                   const Tensor &weight, int64_t top, int64_t stride, int64_t padding,
                   int64_t groups) {
  const auto channels = input.size(1), height = input.size(2), width = input.size(3);
  const auto out = weight.size(0), kh = weight.size(2), kw = weight.size(3), taps = kh * kw;
  const auto rows = offset.size(2), columns = offset.size(3);
  const auto options = offset.options().requires_grad(false);
  const auto tap_y = at::arange(kh, options).repeat_interleave(kw).view({taps, 1, 1});
  const auto tap_x = at::arange(kw, options).repeat({kh}).view({taps, 1, 1});
  const auto out_y =
      ((at::arange(rows, options) + top) * stride - padding).view({1, rows, 1});
  const auto out_x = (at::arange(columns, options) * stride - padding).view({1, 1, columns});
  const auto shift = offset.reshape({taps, 2, rows, columns});
  const auto y = shift.select(1, 0) + (out_y + tap_y);
  const auto x = shift.select(1, 1) + (out_x + tap_x);
  // Pixel indices to grid_sample's normalised coordinates with align_corners = false.
  const auto grid = at::stack({(x * 2 + 1) / width - 1, (y * 2 + 1) / height - 1}, -1);
  const auto sampled =
      at::grid_sampler_2d(input, grid.view({1, taps * rows, columns, 2}),
                          /*interpolation_mode=bilinear*/ 0, /*padding_mode=zeros*/ 0,
                          /*align_corners=*/false)
          .view({channels, taps, rows * columns});
  const auto modulated = (sampled * mask.reshape({1, taps, rows * columns}))
                             .view({groups, channels / groups * taps, rows * columns});
  const auto kernel = weight.reshape({groups, out / groups, channels / groups * taps});
  return at::matmul(kernel, modulated).view({1, out, rows, columns});
}

// Calls `f(image, top, rows)` for chunks of output rows whose sampled inputs (C K w values a row)
// have at most `chunk` elements, or for single rows where one row has more.
template <typename F>
void for_each_chunk(const Tensor &input, const Tensor &mask, int64_t chunk, F f) {
  const auto rows = mask.size(2), row = input.size(1) * mask.size(1) * mask.size(3);
  const auto step = std::max<int64_t>(1, std::min(rows, chunk / std::max<int64_t>(1, row)));
  for (int64_t image = 0; image < input.size(0); ++image)
    for (int64_t top = 0; top < rows; top += step) f(image, top, std::min(step, rows - top));
}

// Saves only the inputs for backward, which recomputes the sampled values chunk by chunk.
struct Deform : torch::autograd::Function<Deform> {
  static Tensor forward(AutogradContext *ctx, const Tensor &input, const Tensor &offset,
                        const Tensor &mask, const Tensor &weight, int64_t stride, int64_t padding,
                        int64_t groups, int64_t chunk) {
    ctx->save_for_backward({input, offset, mask, weight});
    for (auto [name, value] : {std::pair{"stride", stride},
                               {"padding", padding},
                               {"groups", groups},
                               {"chunk", chunk}})
      ctx->saved_data[name] = value;
    auto out =
        at::empty({input.size(0), weight.size(0), mask.size(2), mask.size(3)}, input.options());
    for_each_chunk(input, mask, chunk, [&](int64_t image, int64_t top, int64_t rows) {
      const auto part = [&](const Tensor &t) {
        return t.narrow(0, image, 1).narrow(2, top, rows);
      };
      const auto whole = input.narrow(0, image, 1).contiguous();
      part(out).copy_(
          deform_rows(whole, part(offset), part(mask), weight, top, stride, padding, groups));
    });
    return out;
  }

  static tensor_list backward(AutogradContext *ctx, tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto number = [&](const char *name) { return ctx->saved_data[name].toInt(); };
    tensor_list out(4);
    for (size_t i = 0; i < 4; ++i)
      if (ctx->needs_input_grad(i)) out[i] = at::zeros_like(saved[i], at::MemoryFormat::Contiguous);
    const auto chunk = number("chunk");
    for_each_chunk(saved[0], saved[2], chunk, [&](int64_t image, int64_t top, int64_t rows) {
      const auto part = [&](const Tensor &t) {
        return t.narrow(0, image, 1).narrow(2, top, rows);
      };
      tensor_list leaves = {saved[0].narrow(0, image, 1).contiguous(), part(saved[1]),
                            part(saved[2]), saved[3]};
      tensor_list wanted;
      at::AutoGradMode enable(true);
      for (size_t i = 0; i < 4; ++i) {
        leaves[i] = leaves[i].detach().requires_grad_(out[i].defined());
        if (out[i].defined()) wanted.push_back(leaves[i]);
      }
      const auto y = deform_rows(leaves[0], leaves[1], leaves[2], leaves[3], top, number("stride"),
                                 number("padding"), number("groups"));
      const auto found = torch::autograd::grad({y}, wanted, {part(grads[0])});
      at::NoGradGuard no_grad;
      size_t next = 0;
      if (out[0].defined()) out[0].narrow(0, image, 1).add_(found[next++]);
      if (out[1].defined()) part(out[1]).copy_(found[next++]);
      if (out[2].defined()) part(out[2]).copy_(found[next++]);
      if (out[3].defined()) out[3].add_(found[next++]);
    });
    // One entry for each argument of forward; the four integers have no gradient.
    out.resize(8);
    return out;
  }
};

}  // namespace

extern "C" {

// input [B, C, H, W], offset [B, 2 K, h, w], mask [B, K, h, w], weight [O, C / G, kh, kw] to a new
// tensor [B, O, h, w]; null on failure.
Tensor *dw_deform_conv2d(const Tensor *input, const Tensor *offset, const Tensor *mask,
                         const Tensor *weight, int64_t stride, int64_t padding, int64_t groups,
                         int64_t chunk) {
  return dw::guarded<>(static_cast<Tensor *>(nullptr), [&] {
    return new Tensor(
        Deform::apply(*input, *offset, *mask, *weight, stride, padding, groups, chunk));
  });
}
}
