// Folds a batch norm with fixed statistics into the convolution before it.
//
// Shapes: O output and C input channels, G groups, k the side of the kernel.
#pragma once

#include <ATen/core/Tensor.h>

namespace dw {

// The norm's parameters and statistics [O], all undefined without a norm.
struct Norm {
  at::Tensor gamma, beta, mean, var;

  bool defined() const { return gamma.defined(); }
};

// Weight and bias with the norm folded in.
struct Folded {
  // [O, C / G, k, k], in the kind of the activations.
  at::Tensor weight;
  // [3, O], in the kind of the parameters: the bias, the inverse standard deviation, and its
  // product with gamma, which scales the weight.
  at::Tensor norm;
  // The bias in the kind of the activations; undefined if it was not computed.
  at::Tensor rounded_bias;

  at::Tensor bias() const { return norm.select(0, 0); }
  at::Tensor inverse() const { return norm.select(0, 1); }
  at::Tensor scale() const { return norm.select(0, 2); }
};

// Folds a norm into a weight, which is rounded to `kind`.
Folded fold(const at::Tensor &weight, const Norm &norm, at::ScalarType kind);

// Computes the folded weight again from the `norm` of `Folded`, with the same result.
at::Tensor fold_again(const at::Tensor &weight, const at::Tensor &folded_norm, at::ScalarType kind);

// Whether `add_gradients` can be used: weight, gamma and beta have gradient buffers, and there are
// loops or kernels for the device and the kind.
bool adds_gradients(const at::Tensor &weight, const Norm &norm);

// Adds to the gradient buffers of weight, gamma and beta, given the gradients of the folded weight
// (`dweight`, in its kind) and of the bias (`dbias`), and the `norm` of `Folded`. Without a norm
// only to that of the weight.
void add_gradients(const at::Tensor &weight, const Norm &norm, const at::Tensor &folded_norm,
                   const at::Tensor &dweight, const at::Tensor &dbias);

}  // namespace dw
