// A convolution's weight on a CPU: its copy for the convolution, and the gradient of that copy.
#pragma once

#include <ATen/core/Tensor.h>

namespace dw {

// `weight` [O, C / G, k, k] times `scale` [O], rounded to `kind`; on any device.
at::Tensor scaled_weight(const at::Tensor &weight, const at::Tensor &scale, at::ScalarType kind);

// Whether `add_weight_gradient` can add to the gradient of `weight`: a leaf on the CPU with a
// buffer for its gradient.
bool adds_weight_gradient(const at::Tensor &weight);

// Adds `gradient` (that of the scaled weight, in its kind) times `scale` (undefined: 1) to the
// buffer of `weight`'s gradient. With `scale` returns the sums of gradient times weight [O].
at::Tensor add_weight_gradient(const at::Tensor &weight, const at::Tensor &gradient,
                               const at::Tensor &scale);

}  // namespace dw
