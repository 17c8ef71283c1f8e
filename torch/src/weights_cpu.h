// Loops over the weights of a convolution on a CPU.
#pragma once

#include <ATen/core/Tensor.h>

#include "fold.h"

namespace dw {

// Whether a weight, or its gradient buffer, consists of contiguous rows on the CPU.
bool has_rows(const at::Tensor &weight);

// Writes the rows of `weight` times `scale` [O] to `out`, which is of the weight's kind or bf16.
void scale_rows(const at::Tensor &weight, const at::Tensor &scale, at::Tensor &out);

// Like `add_gradients`, with all tensors in the form that it passes to the kernels.
void add_gradients_cpu(const at::Tensor &weight, const Norm &norm, const at::Tensor &folded_norm,
                       const at::Tensor &dweight, const at::Tensor &dbias);

}  // namespace dw
