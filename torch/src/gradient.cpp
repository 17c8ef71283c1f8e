// Gradient buffers, and hooks that run when a gradient has been accumulated.

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/utils/lambda_post_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <memory>
#include <stdexcept>

#include "common.h"
#include "gradient.h"

using at::Tensor;
using Node = torch::autograd::Node;

bool dw::has_gradient_buffer(const Tensor &param, at::MemoryFormat layout) {
  if (!param.requires_grad() || !param.is_leaf() || at::GradMode::is_enabled()) return false;
  const auto &sum = param.grad();
  return sum.defined() && sum.scalar_type() == param.scalar_type() &&
         sum.device() == param.device() && sum.is_contiguous(layout);
}

extern "C" {

// Makes `grad` (of `param`'s shape) the tensor that backward accumulates into. 0 on success.
int dw_set_grad(const Tensor *param, const Tensor *grad) {
  return dw::status([&] { const_cast<Tensor *>(param)->mutable_grad() = *grad; });
}

// Calls `call(context)` in every backward pass after the gradient of `param` has been accumulated,
// and `drop(context)` once no further call can come. Returns a handle for
// `dw_remove_gradient_hook`; null on failure, after `drop(context)`.
void *dw_add_gradient_hook(const Tensor *param, void (*call)(void *), void *context,
                           void (*drop)(void *)) {
  return dw::guarded(static_cast<void *>(nullptr), [&]() -> void * {
    const std::shared_ptr<void> owned(context, drop);
    auto node = torch::autograd::impl::grad_accumulator(*param);
    if (!node) throw std::runtime_error("the tensor is no leaf that requires a gradient");
    using torch::autograd::variable_list;
    node->add_post_hook(std::make_unique<torch::autograd::utils::LambdaPostHook>(
        [owned, call](const variable_list &outputs, const variable_list &) {
          call(owned.get());
          return outputs;
        }));
    return new std::shared_ptr<Node>(std::move(node));
  });
}

// Releases the accumulator node, and with it the hook once no graph refers to the node.
void dw_remove_gradient_hook(void *hook) { delete static_cast<std::shared_ptr<Node> *>(hook); }
}
