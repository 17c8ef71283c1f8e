// Folds a batch norm with fixed statistics into the convolution before it: on a GPU by the kernels
// of `src/device/kernels/weights.cu`, on a CPU by the loops of `weights_cpu.cpp`, and where neither
// applies by operations of libtorch.

#include "fold.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/addcmul.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/stack.h>

#include "common.h"
#include "gradient.h"
#include "kernels.h"
#include "weights_cpu.h"

namespace {

using at::Tensor;
using dw::floats;
using dw::gradient_of;

// Added to the variance, as in PyTorch's batch norm.
constexpr double EPS = 1e-5;

// Whether the norm's defined tensors have one element for each row of the weight, in its kind and
// on its device.
bool fits(const Tensor &weight, const dw::Norm &norm) {
  for (const auto *t : {&norm.gamma, &norm.beta, &norm.mean, &norm.var})
    if (t->defined() &&
        (t->scalar_type() != weight.scalar_type() || t->numel() != weight.size(0) ||
         !t->is_contiguous() || t->device() != weight.device()))
      return false;
  return true;
}

// Whether the kernels can read a weight as rows.
bool has_rows_on_gpu(const Tensor &weight) {
  return dw::kernels(weight) && weight.scalar_type() == at::kFloat &&
         weight.is_contiguous(dw::CHANNELS_LAST) && weight.numel() > 0;
}

int columns(const Tensor &weight) {
  return static_cast<int>(weight.numel() / weight.size(0));
}

// The rows of a weight times `scale` [O], rounded to `kind`.
Tensor scaled(const Tensor &weight, const Tensor &scale, at::ScalarType kind) {
  auto out = at::empty_like(weight, weight.options().dtype(kind));
  const bool known = kind == weight.scalar_type() || kind == at::kBFloat16;
  if (known && dw::has_rows(weight) && scale.scalar_type() == weight.scalar_type() &&
      scale.is_contiguous() && scale.device() == weight.device())
    dw::scale_rows(weight, scale, out);
  else
    at::mul_out(out, weight, scale.view({-1, 1, 1, 1}));
  return out;
}

dw::Folded fold_on_gpu(const Tensor &weight, const dw::Norm &norm, at::ScalarType kind) {
  const int64_t rows = weight.size(0);
  dw::Folded f{at::empty_like(weight, weight.options().dtype(kind)),
               at::empty({3, rows}, weight.options()),
               at::empty({rows}, weight.options().dtype(kind))};
  dw::launch(dw::kernels(weight)->fold[dw::kind_index(f.weight)], weight, rows, 1, floats(weight),
             floats(norm.gamma), floats(norm.beta), floats(norm.mean), floats(norm.var),
             f.weight.mutable_data_ptr(), f.rounded_bias.mutable_data_ptr(),
             f.norm.mutable_data_ptr<float>(), columns(weight), static_cast<float>(EPS));
  return f;
}

}  // namespace

namespace dw {

Folded fold(const Tensor &weight, const Norm &norm, at::ScalarType kind) {
  const bool known = kind == weight.scalar_type() || kind == at::kBFloat16;
  TORCH_CHECK(norm.beta.defined() && norm.mean.defined() && norm.var.defined(), "no batch norm");
  if (known && has_rows_on_gpu(weight) && fits(weight, norm))
    return fold_on_gpu(weight, norm, kind);
  const auto inverse = (norm.var + EPS).rsqrt_();
  const auto scale = norm.gamma * inverse;
  const auto bias = at::addcmul(norm.beta, norm.mean, scale, -1);
  return {scaled(weight, scale, kind), at::stack({bias, inverse, scale}), Tensor()};
}

Tensor fold_again(const Tensor &weight, const Tensor &folded_norm, at::ScalarType kind) {
  return scaled(weight, folded_norm.select(0, 2), kind);
}

bool adds_gradients(const Tensor &weight, const Norm &norm) {
  const bool has_code = has_rows_on_gpu(weight) || has_rows(weight);
  if (!has_code || !has_gradient_buffer(weight, CHANNELS_LAST)) return false;
  return !norm.defined() || (fits(weight, norm) && has_gradient_buffer(norm.gamma) &&
                             has_gradient_buffer(norm.beta));
}

void add_gradients(const Tensor &weight, const Norm &norm, const Tensor &folded_norm,
                   const Tensor &dweight, const Tensor &dbias) {
  const auto rows = dweight.contiguous(CHANNELS_LAST);
  const auto sums = norm.defined() ? dbias.to(weight.scalar_type()).contiguous() : Tensor();
  const auto kind = rows.scalar_type();
  TORCH_CHECK(kind == weight.scalar_type() || kind == at::kBFloat16, "a gradient in ", kind);
  if (!has_rows_on_gpu(weight)) return add_gradients_cpu(weight, norm, folded_norm, rows, sums);
  launch(kernels(weight)->add_gradients[kind_index(rows)], weight, weight.size(0), 1,
         rows.const_data_ptr(), floats(sums), floats(weight), floats(norm.mean),
         floats(folded_norm), gradient_of(weight), gradient_of(norm.gamma), gradient_of(norm.beta),
         columns(weight));
}

}  // namespace dw
