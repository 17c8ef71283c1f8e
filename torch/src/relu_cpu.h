// The gradient of a ReLU on a CPU.
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

namespace dw {

// Whether `relu_gradient_cpu` can work on `dy` and `y`.
bool has_relu_gradient_cpu(const at::Tensor &dy, const at::Tensor &y);

// The gradient before the ReLU whose output is `y` (undefined: no ReLU, and `dy` itself), and its
// sums [C], f32. libtorch takes two passes, and a third if oneDNN computes the sums.
std::pair<at::Tensor, at::Tensor> relu_gradient_cpu(const at::Tensor &dy, const at::Tensor &y);

}  // namespace dw
