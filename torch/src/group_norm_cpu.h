// Group norm, optionally followed by ReLU, of channels-last tensors [B, C, H, W] of f32 or bf16 on
// a CPU.
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>
#include <vector>

namespace dw {

// Whether the functions below can work on `x` with these parameters.
bool has_group_norm_cpu(const at::Tensor &x, const at::Tensor &gamma, const at::Tensor &beta);

// Returns relu(group_norm(x)) or, without `relu`, group_norm(x); and, for backward, the mean and
// the inverse standard deviation of each group [B, G, 2], f64.
std::pair<at::Tensor, at::Tensor> group_norm_cpu(const at::Tensor &x, const at::Tensor &gamma,
                                                 const at::Tensor &beta, int64_t groups,
                                                 double eps, bool relu);

// The gradients of x, gamma and beta, from that of the output.
std::vector<at::Tensor> group_norm_cpu_backward(const at::Tensor &dy, const at::Tensor &x,
                                                const at::Tensor &gamma, const at::Tensor &beta,
                                                const at::Tensor &stats, bool relu);

}  // namespace dw
