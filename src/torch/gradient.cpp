// Gradient buffers and hooks.

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/utils/lambda_post_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <memory>
#include <stdexcept>

#include "common.h"

using at::Tensor;

extern "C" {

// Makes `grad` (same shape as `param`) the tensor that backward accumulates into. 0 on success.
int dw_set_grad(const Tensor *param, const Tensor *grad) {
  return dw::status([&] { const_cast<Tensor *>(param)->mutable_grad() = *grad; });
}

// Calls `call(context)` after each backward's gradient of `param` has been accumulated; `drop(context)` when nobody
// can call it any more. Returns what keeps the hook alive, null on failure (then `context` is dropped, too).
void *dw_on_gradient(const Tensor *param, void (*call)(void *), void *context, void (*drop)(void *)) {
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
    return new std::shared_ptr<torch::autograd::Node>(std::move(node));
  });
}

// Removes a hook.
void dw_forget_gradient(void *hook) { delete static_cast<std::shared_ptr<torch::autograd::Node> *>(hook); }
}
